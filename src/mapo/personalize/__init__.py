"""From a few photos of one subject to a word for it and a LoRA: rounds of drawing, pairs and training in one folder."""
