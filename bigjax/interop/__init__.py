"""Other projects' formats. `hf` is Hugging Face: folders of weights, tokenizers and configs, both ways."""
