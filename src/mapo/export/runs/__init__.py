"""What a run becomes for other programs: diffusers' folders, LoRAs, single files, a model on the hub."""
