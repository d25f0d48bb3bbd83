"""What tests of building share: prompts, recipes and judges."""

import hashlib

from mapo.build.recipe import changed_recipe, read_recipe

PROMPTS = ["a red square", "a blue heart", "a green star"]
CARTOON = read_recipe("pick-style-cartoon")
SAFETY = changed_recipe(read_recipe("pick-safety"), ["rejected=Hazard tape image."])
BEST = changed_recipe(read_recipe("best-of-k"), candidates=3)
HOW = {"steps": 2, "images_per_batch": 4}


def contents(folder):
    """The hash of every file below a folder, by its name."""
    return {
        str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest()
        for f in folder.rglob("*")
        if f.is_file() and not f.name.endswith(".lock")
    }


class Lightness:
    """A scorer that sees how light a picture is, or the light of one colour."""

    name, version, revision, needs_reference = "lightness", "1", "", False
    metrics = ("all", "red")

    def __call__(self, pictures, prompts, references=None):
        assert len(pictures) == len(prompts)
        means = [[sum(band.getdata()) / (255 * len(band.getdata())) for band in p.split()] for p in pictures]
        return {"all": [sum(m) / 3 for m in means], "red": [m[0] for m in means]}

    def notes(self):
        return [f"{self.name} was asked"]


class Fussy(Lightness):
    """A scorer that likes pictures whose first bytes fall so: about half of all, the same at every call."""

    name, metrics = "fussy", ("liked",)

    def __call__(self, pictures, prompts, references=None):
        return {"liked": [float(hashlib.sha256(p.tobytes()).digest()[0] < 128) for p in pictures]}
