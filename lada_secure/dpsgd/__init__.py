"""DP-SGD over privacy units: sampling, clipping, noise, engines, the trainer."""
