"""The last module that is loaded before tests and processes begin: what lies in memory by then is no garbage.

The libraries are a million objects, and each full collection, of which every encoding asks for two, looked through them.
"""

import gc

gc.collect()
gc.freeze()
