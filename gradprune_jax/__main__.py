"""`python -m gradprune_jax` is the command `gradprune`."""

from gradprune_jax._cli import main

if __name__ == "__main__":
    main()
