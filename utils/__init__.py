"""Files, folders, devices, plots and reports shared by the entry scripts.

Nothing here imports nets/, pruning/ or dataloader/.
"""
