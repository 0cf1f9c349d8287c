"""Speculation inside your own `model.generate`: one more argument, and everything else stays as it was.

    python examples/hf_drop_in.py            # the embedded SmolLM2, drafting from the prompt
    python examples/hf_drop_in.py --tiny     # random weights and a draft model: seconds, no download, no meaning
"""

import argparse
import copy
import time
from typing import Any

import torch
import transformers

import draftwise
from draftwise.plugins.transformers import custom_generate

TASK = "Copy this list word for word:\n\n" + "".join(f"- Chapter {i}: how the river finds the sea\n" for i in range(1, 7))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="random weights instead of SmolLM2")
    model, draft, inputs, tokenizer = tiny() if parser.parse_args().tiny else smollm2()
    options: dict[str, Any] = {"max_new_tokens": 64, "do_sample": False}
    streamer = transformers.TextStreamer(tokenizer, skip_prompt=True) if tokenizer else None

    speculate = custom_generate(draft)  # keep it: what its policies learn is then kept
    start = time.perf_counter()
    plain = model.generate(**inputs, **options)
    middle = time.perf_counter()
    ours = model.generate(**inputs, **options, streamer=streamer, custom_generate=speculate)
    end = time.perf_counter()

    figures = speculate.stats[0]
    print(f"same ids: {torch.equal(plain, ours)}")
    print(f"plain generate: {middle - start:.2f} s; with drafts: {end - middle:.2f} s")
    print(f"{figures.tokens} tokens in {figures.rounds} passes of the model; {figures.accepted} of {figures.drafted} drafted tokens were accepted")

    # sampling, several answers at once, and torch's own seed
    torch.manual_seed(0)
    many = model.generate(**inputs, max_new_tokens=16, do_sample=True, top_p=0.9, num_return_sequences=3, custom_generate=speculate)
    print(f"three samples: {[row[inputs['input_ids'].shape[1] :].tolist()[:6] for row in many]} ...")


def smollm2() -> tuple[Any, Any, Any, Any]:
    """The model, no draft model (drafts are then copied from the text), the prompt, and the tokenizer."""
    model, tokenizer, _ = draftwise.load_model("smollm2", progress=print)
    chat = [{"role": "user", "content": TASK}]
    inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    return model, None, inputs.to(model.device), tokenizer


def tiny() -> tuple[Any, Any, Any, Any]:
    """A random model, a disturbed copy of it as its draft, and some ids."""
    torch.manual_seed(0)
    shape = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "initializer_range": 0.3}
    config = transformers.LlamaConfig(**shape, max_position_embeddings=256, eos_token_id=None, pad_token_id=0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    draft = copy.deepcopy(model)
    for weight in draft.parameters():
        weight.data += 0.03 * torch.randn_like(weight)
    ids = torch.tensor([[5, 9, 11, 5, 9, 11]])
    return model, draft, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, None


if __name__ == "__main__":
    main()
