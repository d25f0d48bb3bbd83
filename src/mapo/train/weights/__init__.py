"""The weights that are trained: adapters, one order of opening, the updater."""
