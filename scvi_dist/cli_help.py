"""What ``scvi-dist --help`` and the commands' own help say."""

EPILOG = """\
a first look:
  scvi-dist demo                              everything once, on a simulated atlas
your own cells:
  scvi-dist store info atlas.h5ad             what is in the file
  scvi-dist plan run.yaml                     what a run would do, and what it would need
  scvi-dist run run.yaml train.max_epochs=20  train, evaluate, register, write the latent space

Each command explains itself with --help.
"""

DEMO = """\
Simulates a small atlas, trains SCVI on it with Ray Train workers, evaluates it, registers it in
MLflow, writes the latent space and draws pictures. Needs nothing but this package; everything
stays in one folder. A demo that was interrupted goes on where it stopped.
"""

DEMO_EPILOG = """\
examples:
  scvi-dist demo
  scvi-dist demo --dir /tmp/demo --cells 5000 --epochs 3
  scvi-dist demo --workers 0           in this process, without Ray
"""

RUN = """\
Trains a model on your own cells as a run file says, and writes all that comes of it to the folder
output.dir. The same command goes on with a run that was interrupted; it never replaces the
output of another run.
"""

RUN_EPILOG = """\
a run file:
  data:
    store: atlas.zarr           # or a list of h5ad files with the same genes
    batch_key: batch
  train:
    workers: 2
    max_epochs: 50
    early_stopping: true
  output:
    dir: runs/atlas

examples:
  scvi-dist run run.yaml
  scvi-dist run run.yaml train.workers=8 train.plan.lr=5e-4 model.n_latent=30
  scvi-dist run run.yaml tracking.uri=http://mlflow:5000 tracking.register_as=atlas
  scvi-dist run run.yaml --keys       every key there is, with its default
"""

PLAN = """\
Says what 'scvi-dist run' would do with a run file: cells, genes and batches, steps, what is padded,
what is read, how much memory a worker needs, what is written. Opens the store; starts nothing.
"""

PLAN_EPILOG = """\
examples:
  scvi-dist plan run.yaml
  scvi-dist plan run.yaml train.workers=8 train.batch_size=1024
  scvi-dist plan run.yaml --json | jq .memory
"""

INFO = """\
Describes a store without reading its matrix: cells, genes, layers, columns of obs with their number
of categories, and how it is laid out on disk.
"""

INFO_EPILOG = """\
examples:
  scvi-dist store info atlas.h5ad
  scvi-dist store info atlas.zarr --layer counts
  scvi-dist store info shard_0.h5ad shard_1.h5ad     several files as one store
"""
