"""Character Engine: from one sentence to a tested, reusable SDXL character adapter."""

__version__ = "0.1.0"
