"""The papers behind the methods, and their BibTeX."""

from __future__ import annotations

from typing import NamedTuple


class Paper(NamedTuple):
    """`arxiv`: its number, or '' where `url` names another place. `venue`: where it was published, if known."""

    title: str
    authors: str
    year: int
    arxiv: str = ""
    venue: str = ""
    url: str = ""

    @property
    def link(self) -> str:
        """Where to read it."""
        return f"https://arxiv.org/abs/{self.arxiv}" if self.arxiv else self.url


PAPERS = {
    "leviathan2023": Paper(
        "Fast Inference from Transformers via Speculative Decoding",
        "Leviathan, Yaniv and Kalman, Matan and Matias, Yossi",
        2023,
        "2211.17192",
        "ICML",
    ),
    "chen2023": Paper(
        "Accelerating Large Language Model Decoding with Speculative Sampling",
        "Chen, Charlie and Borgeaud, Sebastian and Irving, Geoffrey and Lespiau, Jean-Baptiste and Sifre, Laurent and Jumper, John",
        2023,
        "2302.01318",
    ),
    "lu2025adasd": Paper(
        "AdaSD: Adaptive Speculative Decoding for Efficient Language Model Inference",
        "Lu, Kuan-Wei and Hong, Ding-Yong and Liu, Pangfeng",
        2025,
        "2512.11280",
    ),
    "gautam2025gammatune": Paper(
        "Token-Driven GammaTune: Adaptive Calibration for Enhanced Speculative Decoding",
        "Gautam, Aayush and Shrestha, Susav and Reddy, Narasimha",
        2025,
        "2504.00030",
    ),
    "zhang2024svip": Paper(
        "Draft Model Knows When to Stop: A Self-Verification Length Policy for Speculative Decoding",
        "Zhang, Ziyin and Xu, Jiahao and Liang, Tian and Chen, Xingyu and He, Zhiwei and Wang, Rui and Tu, Zhaopeng",
        2024,
        "2411.18462",
    ),
    "agrawal2024adaedl": Paper(
        "AdaEDL: Early Draft Stopping for Speculative Decoding of Large Language Models "
        "via an Entropy-based Lower Bound on Token Acceptance Probability",
        "Agrawal, Sudhanshu and Jeon, Wonseok and Lee, Mingu",
        2024,
        "2410.18351",
    ),
    "mamou2024disco": Paper(
        "Dynamic Speculation Lookahead Accelerates Speculative Decoding of Large Language Models",
        "Mamou, Jonathan and Pereg, Oren and Korat, Daniel and Berchansky, Moshe and Timor, Nadav and Wasserblat, Moshe and Schwartz, Roy",
        2024,
        "2405.04304",
    ),
    "gante2023assisted": Paper(
        "Assisted Generation: a new direction toward low-latency text generation",
        "Gante, Joao",
        2023,
        venue="Hugging Face blog",
        url="https://huggingface.co/blog/assisted-generation",
    ),
    "cai2024medusa": Paper(
        "Medusa: Simple LLM Inference Acceleration Framework with Multiple Decoding Heads",
        "Cai, Tianle and Li, Yuhong and Geng, Zhengyang and Peng, Hongwu and Lee, Jason D. and Chen, Deming and Dao, Tri",
        2024,
        "2401.10774",
        "ICML",
    ),
    "daliri2024coupling": Paper(
        "Coupling without Communication and Drafter-Invariant Speculative Decoding",
        "Daliri, Majid and Musco, Christopher and Suresh, Ananda Theertha",
        2024,
        "2408.07978",
    ),
    "sun2025ears": Paper(
        "EARS: Efficient Adaptive Rejection Sampling for Accelerating Speculative Decoding in Large Language Models",
        "Sun, Chendong and Mao, Ali and Xu, Lei and Chen, Mingmin",
        2025,
        "2512.13194",
    ),
    "li2025fly": Paper(
        "Training-Free Loosely Speculative Decoding: Accepting Semantically Correct Drafts Beyond Exact Match",
        "Li, Jinze and Xu, Yixing and Li, Guanchen and Yang, Shuo and Xu, Jinfeng and Yin, Xuanwu and Li, Dong "
        "and Ngai, Edith C. H. and Barsoum, Emad",
        2025,
        "2511.22972",
    ),
    "ding2025consultant": Paper(
        "Consultant Decoding: Yet Another Synergistic Mechanism",
        "Ding, Chuanghao and Wang, Jiaping and Yang, Ziqing and Wang, Xiaoliang and Lin, Dahua and Nguyen, Cam-Tu and Tan, Fei",
        2025,
        "2506.02391",
        "Findings of ACL",
    ),
    "globerson2025hsd": Paper(
        "Fast Inference via Hierarchical Speculative Decoding",
        "Globerson, Amir and Kaplan, Haim and Mansour, Yishay and Mohri, Clara and Schuster, Tal",
        2025,
        "2510.19705",
    ),
    "song2025stand": Paper(
        "Accelerated Test-Time Scaling with Model-Free Speculative Sampling",
        "Song, Woomin and Dingliwal, Saket and Jayanthi, Sai Muralidhar and Ganesh, Bhavana and Shin, Jinwoo and Galstyan, Aram "
        "and Bodapati, Sravan Babu",
        2025,
        "2506.04708",
        "EMNLP",
    ),
    "oliaro2024suffix": Paper(
        "SuffixDecoding: Extreme Speculative Decoding for Emerging AI Applications",
        "Oliaro, Gabriele and Jia, Zhihao and Campos, Daniel and Qiao, Aurick",
        2024,
        "2411.04975",
    ),
    "luo2024recycling": Paper(
        "Turning Trash into Treasure: Accelerating Inference of Large Language Models with Token Recycling",
        "Luo, Xianzhen and Wang, Yixuan and Zhu, Qingfu and Zhang, Zhiming and Zhang, Xuanyu and Yang, Qing and Xu, Dongliang",
        2024,
        "2408.08696",
    ),
    "timor2025": Paper(
        "Accelerating LLM Inference with Lossless Speculative Decoding Algorithms for Heterogeneous Vocabularies",
        "Timor, Nadav and Mamou, Jonathan and Korat, Daniel and Berchansky, Moshe and Jain, Gaurav and Pereg, Oren and Wasserblat, Moshe and "
        "Harel, David",
        2025,
        "2502.05202",
        "ICML",
    ),
    "hf2024uag": Paper(
        "Universal Assisted Generation: Faster Decoding with Any Assistant Model",
        "Korat, Daniel and Pereg, Oren and Berchansky, Moshe and Wasserblat, Moshe",
        2024,
        url="https://huggingface.co/blog/universal_assisted_generation",
    ),
    "saxena2023lookup": Paper("Prompt Lookup Decoding", "Saxena, Apoorv", 2023, url="https://github.com/apoorvumang/prompt-lookup-decoding"),
    "li2024eagle2": Paper(
        "EAGLE-2: Faster Inference of Language Models with Dynamic Draft Trees",
        "Li, Yuhui and Wei, Fangyun and Zhang, Chao and Zhang, Hongyang",
        2024,
        "2406.16858",
        "EMNLP",
    ),
    "miao2023specinfer": Paper(
        "SpecInfer: Accelerating Large Language Model Serving with Tree-based Speculative Inference and Verification",
        "Miao, Xupeng and Oliaro, Gabriele and Zhang, Zhihao and Cheng, Xinhao and Wang, Zeyu and others",
        2023,
        "2305.09781",
        "ASPLOS",
    ),
}


def bibtex(key: str) -> str:
    """The BibTeX entry of a paper of `PAPERS`."""
    paper = PAPERS[key]
    fields = {"title": f"{{{paper.title}}}", "author": paper.authors, "year": str(paper.year)}
    if paper.arxiv:
        fields |= {"eprint": paper.arxiv, "archivePrefix": "arXiv"}
    if paper.venue:
        fields["booktitle" if paper.venue == "ICML" else "howpublished"] = paper.venue
    fields["url"] = paper.link
    kind = "inproceedings" if paper.venue == "ICML" else "misc"
    return f"@{kind}{{{key},\n" + "\n".join(f"  {name:<13} = {{{value}}}," for name, value in fields.items()) + "\n}"
