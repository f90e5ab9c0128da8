"""Loading language models, one view of their blocks, and where their bytes are."""
