"""What ``scvi-dist --help`` and the commands' own help say."""

EPILOG = """\
a first look:
  scvi-dist demo                              everything once, on a simulated atlas
your own cells:
  scvi-dist store info atlas.h5ad             what is in the file
  scvi-dist plan run.yaml                     what a run would do, and what it would need
  scvi-dist run run.yaml train.max_epochs=20  train, evaluate, register, write the latent space
a cluster of Ray:
  scvi-dist submit run.yaml --address http://head:8265 --follow     the same there
what a trained model says:
  scvi-dist de runs/atlas atlas.h5ad --groupby cell_type --out de     genes that differ
  scvi-dist ppc runs/atlas atlas.h5ad --out ppc                       how well the model fits
stores:
  scvi-dist store shuffle atlas.h5ad fast.zarr    in random order, in a layout made for training
  scvi-dist store validate fast.zarr              read all of it and say what is wrong

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

SUBMIT = """\
Sends a run file to a Ray cluster, where 'scvi-dist run' does what it says. The run file is the same
as for 'run'; stores and the output folder are URLs or absolute paths that the cluster's hosts see.
Submitted again, a run goes on where it stopped, in its folder and its MLflow run. The token of the
cluster is taken from RAY_AUTH_TOKEN. Exit code with --follow: that of the run.
"""

SUBMIT_EPILOG = """\
examples:
  scvi-dist submit run.yaml --address http://head:8265 --follow
  scvi-dist submit run.yaml train.workers=8 train.ray.use_gpu=true --name atlas-1
  scvi-dist submit run.yaml --shared-storage       from a folder that the cluster sees, too
  scvi-dist submit run.yaml --package              with this scvi_dist instead of the cluster's
"""

JOBS = """\
The jobs of a Ray cluster. Its address comes from --address or RAY_API_SERVER_ADDRESS, its token
from RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH, a file).
"""

JOBS_LIST = """\
Lists the jobs that the cluster was sent since it started, newest first.
"""

JOBS_LIST_EPILOG = """\
examples:
  scvi-dist jobs list --address http://head:8265
  scvi-dist jobs list --json | jq '.[].name'
"""

JOBS_LOGS = """\
Prints what a job has written; with --follow to its end, with the exit code of the run. Ctrl-C ends
the watching, not the job.
"""

JOBS_LOGS_EPILOG = """\
examples:
  scvi-dist jobs logs atlas-1 --address http://head:8265
  scvi-dist jobs logs atlas-1 --follow
"""

JOBS_STOP = """\
Asks a job to stop and waits until it has: a training writes a checkpoint first, and the run goes
on from there when it is submitted again.
"""

JOBS_STOP_EPILOG = """\
examples:
  scvi-dist jobs stop atlas-1 --address http://head:8265
"""

JOBS_STATUS = """\
Says how a job is. Exit code 0 if it waits, runs or has succeeded, 130 if it was stopped, else that
of the run.
"""

JOBS_STATUS_EPILOG = """\
examples:
  scvi-dist jobs status atlas-1 --address http://head:8265
  scvi-dist jobs status atlas-1 --json | jq -r .status
"""

STORE = """\
Looks at stores of cells, copies them from any kind to any other, writes them in random order, and
checks them. A source is never changed; nothing that exists is overwritten without --overwrite.
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

CONVERT = """\
Copies a store: h5ad, Zarr or TileDB-SOMA to h5ad, Zarr or TileDB-SOMA, block by block in a few
hundred MB of memory. X, layers and raw, obs, var, obsm, varm and uns are copied as far as both
kinds have them; what is not (obsp and varp, for instance) is listed at the end. With --layer that
matrix becomes X, and no other is copied. What an interrupted copy left is written anew.
"""

CONVERT_EPILOG = """\
examples:
  scvi-dist store convert atlas.h5ad atlas.zarr
  scvi-dist store convert atlas.h5ad fast.zarr --layout training      small integers, checksums
  scvi-dist store convert shard_0.h5ad shard_1.h5ad atlas.zarr        several files as one store
  scvi-dist store convert s3://bucket/atlas.zarr atlas.h5ad --option anon=true
"""

SHUFFLE = """\
Writes the cells of a store in random order to a Zarr store with small integers, in shards: any
stretch of it is then a fair sample, and training reads long stretches. The order depends on the
seed alone. Ray tasks do the work (or threads, with --no-ray) in the memory given, in two passes;
the cells are on disk a second time meanwhile. The same command goes on where it was interrupted.
"""

SHUFFLE_EPILOG = """\
examples:
  scvi-dist store shuffle atlas.h5ad shuffled.zarr
  scvi-dist store shuffle atlas.zarr shuffled.zarr --workers 16 --memory-gb 64
  scvi-dist store shuffle atlas.zarr shuffled.zarr --no-ray --seed 1
"""

SUBSET = """\
Copies the cells for which an expression over obs holds, and the genes that are named, in the order
given. The expression is evaluated without reading counts; of layers and raw the same cells and
genes are copied.
"""

SUBSET_EPILOG = """\
examples:
  scvi-dist store subset atlas.h5ad liver.zarr --filter "tissue == 'liver' and n_genes > 500"
  scvi-dist store subset atlas.zarr small.h5ad --genes @genes.txt
  scvi-dist store subset atlas.zarr cd.h5ad --genes CD3E,CD4,CD8A --layer counts
"""

VALIDATE = """\
Reads every row of a store and says what is wrong, with the rows: damaged or missing chunks (by
their checksums where there are any), row pointers or gene numbers out of bounds, values that are
no counts, names that occur twice, a matrix that is not the one that 'store convert' or 'store
shuffle' wrote. Exit code 0 if all is well, 1 if not. The checksum of the cells does not depend on
their order: a shuffled copy has the checksum of its source.
"""

VALIDATE_EPILOG = """\
examples:
  scvi-dist store validate atlas.zarr
  scvi-dist store validate atlas.h5ad --layer counts
  scvi-dist store validate atlas.zarr --json | jq .problems
"""

HVG = """\
Chooses genes whose counts vary more than their mean lets expect, as Seurat v3 and scanpy do, in
two passes over the store. Prints their names, which 'store subset --genes @FILE' and the run
file's data.genes_file take.
"""

HVG_EPILOG = """\
examples:
  scvi-dist store hvg atlas.zarr --batch-key donor --out genes.txt
  scvi-dist store hvg atlas.zarr -n 4000 --layer counts --out genes.csv      the whole table
"""

DE = """\
Compares populations of cells in the expression that a model infers: each population of a column
with all other cells, or the ones that are named. Writes the table of all comparisons, volcano
plots and a dot plot. The same command goes on where it was interrupted.
"""

DE_EPILOG = """\
examples:
  scvi-dist de runs/atlas atlas.zarr --groupby cell_type --out runs/atlas/de
  scvi-dist de runs/atlas atlas.zarr --groupby type --group1 T --group2 B --out t_and_b
  scvi-dist de models:/atlas/3 atlas.zarr --groupby type --estimator full --out de --dask local:8
  scvi-dist de saved_model atlas.zarr --groupby type --out de --dask tcp://scheduler:8786
"""

DA = """\
Gives every cell the log density that the cells of each sample have at its place in the latent
space. Writes the table of cells x samples and a heat map of its means.
"""

DA_EPILOG = """\
examples:
  scvi-dist da runs/atlas atlas.zarr --sample-key donor --out runs/atlas/da
  scvi-dist da runs/atlas atlas.zarr --sample-key donor --groupby cell_type --out da
"""

PPC = """\
Draws counts from a model and compares them with the observed ones: coefficients of variation of
cells and genes, zeros, whether credible intervals hold what they promise, and differential
expression. Writes a report to read, a table for each metric, scatter plots and the calibration
curve.
"""

PPC_EPILOG = """\
examples:
  scvi-dist ppc runs/atlas atlas.zarr --out runs/atlas/ppc
  scvi-dist ppc runs/atlas atlas.zarr --cells 20000 --n-samples 5 --out ppc
  scvi-dist ppc runs/atlas atlas.zarr --metrics diff_exp --groupby cell_type --out ppc_de
"""
