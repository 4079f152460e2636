"""`python -m trainers train …`: the training commands alone, also what `accelerate launch -m trainers …` starts."""

from trainers.cli import app

if __name__ == "__main__":
    app()
