"""Train or adapt a model: ``python train.py experiment=ltx_adapt``; ``--help`` tells more."""

import sys

import hydra
from omegaconf import DictConfig

from sana_train.cli.preflight import preflight


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(cfg: DictConfig) -> None:
    from sana_train.cli import train  # heavy imports only after the command line is found valid

    train.main(cfg)


if __name__ == "__main__":
    sys.argv[1:] = preflight("train", sys.argv[1:])
    main()
