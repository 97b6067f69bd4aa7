"""Videos and captions as they are found, turned into shards of clips to train on."""
