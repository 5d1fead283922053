"""The commands of ``conv3dt``: a module for each, with its options and what it does.

    run ──┬→ model ─→ conv3dt.formats
          ├→ volumes, nifti (files) → axes (five of them)
          └→ progress
    bench ┬→ model
          └→ peers (other packages)
    layers → conv3dt.formats

`parser` is how all of them read their arguments. Optional packages are imported on use.
"""
