"""fp8: take a Hugging Face checkpoint to FP8, ready for vLLM, and prove that nothing was lost."""

__version__ = "0.1.0"
