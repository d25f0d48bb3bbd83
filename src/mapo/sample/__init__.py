"""Pictures of a model, the folder they lie in, and prompts."""
