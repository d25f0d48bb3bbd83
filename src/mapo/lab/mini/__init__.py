"""The built-in world: captioned drawings, a tiny model of SDXL's layout that knows them, and two judges."""
