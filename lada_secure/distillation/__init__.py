"""Reasoning paths, the distillation loss, and the DP-SGD trainer over privacy units."""
