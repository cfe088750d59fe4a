#!/usr/bin/env bash
# From a fresh clone to a trained, scored translator: `bash launch/quickstart.sh`.
#
# Makes an environment (see launch/setup.sh), then prepares the embedded English-German corpus, trains on two CPU ranks
# with ZeRO-2, evaluates on held-out sentences and translates five of them. Arguments are overrides of the experiment:
# `bash launch/quickstart.sh training.max_steps=50 run=runs/short`. Running it again resumes, or only shows.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/setup.sh
source "$here/setup.sh"
setup_environment ""

run=runs/toy
for argument in "$@"; do
  case $argument in run=*) run=${argument#run=} ;; esac
done
# Two ranks on CPUs also where there is a GPU: the same run everywhere.
export CUDA_VISIBLE_DEVICES="" DS_ACCELERATOR=cpu OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
say() { printf '\n== %s\n' "$*" >&2; }

say "1/4 prepare: the embedded corpus, cleaned, tokenised, in shards"
bmscale prepare toy "$@"

say "2/4 train: two ranks, DeepSpeed ZeRO-2"
accelerate launch --config_file launch/cpu_2proc.yaml -m bmscale train toy "$@"

say "3/4 evaluate: held-out sentences, scored by sacreBLEU"
bmscale evaluate "$run" >/dev/null

say "4/4 translate: five held-out sentences"
python -m bmscale.data.toy test 5 | cut -f1 >"$run/held-out.en"
bmscale translate "$run/model/best" <"$run/held-out.en" >"$run/held-out.de"
paste "$run/held-out.en" "$run/held-out.de" | sed 's/\t/\n    -> /'

cat <<END

Trained in $(grep -o '"seconds": [0-9.]*' "$run/metrics.jsonl" | tail -1 | cut -d' ' -f2) s. Where everything is:
  $run/model/best     the model, for AutoModelForSeq2SeqLM or bmscale translate
  $run/results.json   scores with sacreBLEU signatures and confidence intervals
  $run/metrics.jsonl  loss, speed and validation, line by line
  $run/run.yaml       the resolved experiment, versions, data hash
  prepared/toy        the prepared corpus with its manifest

What to type next:
  source ${VIRTUAL_ENV:-.venv}/bin/activate
  echo 'The teacher works in the small house.' | bmscale translate $run/model/best
  bmscale --help
END
