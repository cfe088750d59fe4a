#!/usr/bin/env bash
# From a fresh clone to a trained, scored translator: `bash launch/quickstart.sh`.
#
# Makes an environment (see launch/setup.sh), then the five steps: prepare the embedded English-German corpus, train
# on two ranks with ZeRO-2, evaluate on held-out sentences, translate five of them. Arguments go to every command that
# takes an experiment: `bash launch/quickstart.sh training.max_steps=50`. Running it again resumes, or only shows.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/setup.sh
source "$here/setup.sh"
setup_environment ""

run=${BMSCALE_RUN:-runs/toy}
say() { printf '\n== %s\n' "$*" >&2; }

say "1/4 prepare: the embedded corpus, cleaned, tokenised, in shards"
bmscale prepare toy "$@"

say "2/4 train: two ranks, DeepSpeed ZeRO-2"
started=$(date +%s)
accelerate launch --config_file launch/cpu_2proc.yaml -m bmscale train toy run="$run" "$@"
trained=$(($(date +%s) - started))

say "3/4 evaluate: held-out sentences, scored by sacreBLEU"
bmscale evaluate "$run" >/dev/null

say "4/4 translate: five held-out sentences"
python -m bmscale.data.toy test 5 | cut -f1 | tee "$run/held-out.en" | bmscale translate "$run/model/best" |
  paste "$run/held-out.en" - | sed 's/\t/\n    -> /'

cat <<END

Trained in ${trained} s. Where everything is:
  $run/model/best     the model, for AutoModelForSeq2SeqLM or bmscale translate
  $run/results.json   scores with sacreBLEU signatures and confidence intervals
  $run/metrics.jsonl  loss, speed and validation, line by line
  $run/run.yaml       the resolved experiment, versions, data hash
  prepared/toy        the prepared corpus with its manifest

What to type next:
  source ${VIRTUAL_ENV:-.venv}/bin/activate
  echo 'The old man does not see the small house.' | bmscale translate $run/model/best
  bmscale --help
END
