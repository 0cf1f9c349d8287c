"""The parts of the report: pictures, tables, text samples, and the page that holds them."""
