"""Where attempts run: the seam in `base`, this machine in `local`, and a stand-in in `fake`."""
