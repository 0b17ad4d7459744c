# One run of scvi-dist as a job of Ray; 'scvi-dist submit' sends it with the run file.
#   sh job.sh [FOLDER]      FOLDER: where relative paths of the run file start
run_file=$(pwd)/run.yaml

# The interpreter of Ray's workers, as the process says that starts them. "python" on the PATH of
# Ray's processes may be another one, without Ray.
python_of_ray() {
  raylet=$(sed -n 's/^PPid:[[:space:]]*//p' "/proc/$PPID/status")
  tr '\0' '\n' <"/proc/$raylet/cmdline" |
    sed -n 's/^--python_worker_command=\([^ ]*\) .*/\1/p'
}

can_run() {
  "$1" -c 'import importlib.util as u, sys
sys.exit(any(u.find_spec(name) is None for name in ("ray", "scvi_dist")))'
}

for python in "${SCVI_DIST_PYTHON:-}" "$(python_of_ray 2>/dev/null)" python python3; do
  if [ -n "$python" ] && can_run "$python" 2>/dev/null; then
    if [ $# -gt 0 ] && ! cd "$1"; then
      echo "error: this host does not see $1, which was said to be on shared storage." >&2
      exit 2
    fi
    exec "$python" -P -m scvi_dist.cli run "$run_file"
  fi
done
echo "error: no Python on $(hostname) has both Ray and scvi_dist. Install scvi_dist where the
cluster's Ray is, submit with --package, or set SCVI_DIST_PYTHON in the environment of 'ray start'." >&2
exit 2
