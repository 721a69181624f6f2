"""The ensemble's knowledge: memory bank, distillation, contrast."""
