"""Models that lie in one safetensors file."""
