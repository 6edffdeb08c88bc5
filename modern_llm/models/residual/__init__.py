"""Parts of the residual stream: what happens to it between the blocks. The choices of `model/residual`."""
