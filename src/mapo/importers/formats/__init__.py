"""The formats of other people's pairs, a module each: a generator from a source to raw pairs.

A newcomer is a module with ``SHAPE`` (its columns), ``detects(source)`` and ``read(source, options, start)`` and one
line in :data:`IMPORTERS`. What holds the rows (Parquet, JSON lines, CSV, tar, …) does not matter to a format: that is
``importers/containers``.
"""

IMPORTERS = {
    "pickapic": "mapo.importers.formats.pickapic",
    "preference": "mapo.importers.formats.preference",
    "ranking": "mapo.importers.formats.ranking",
    "scores": "mapo.importers.formats.scores",
    "hpdv2": "mapo.importers.formats.hpdv2",
    "imagereward": "mapo.importers.formats.imagereward",
    "jsonl": "mapo.importers.formats.jsonl",
    "folders": "mapo.importers.formats.folders",
}
