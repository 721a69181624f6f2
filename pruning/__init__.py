"""Which filters go: scores, proposals, rewards, their evaluation, the memory bank, distillation."""
