"""Judge both stages: ``python evaluate.py experiment=two_stage checkpoint=RUN/export``; see ``--help``."""

from sana_train.cli.evaluate import main

if __name__ == "__main__":
    main()
