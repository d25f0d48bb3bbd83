"""LoRAs: where they lie (``sources``), what is in their files (``keys``, ``read``), a record for each layer
(``layers``), and writing them (``write``)."""
