"""Parts that change what each head of attention gives. The choices of `model/heads`."""
