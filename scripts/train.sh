# shellcheck shell=bash
#: Usage: ./paperlab train --config FILE [--set KEY=VALUE]... [OPTIONS]
#:
#: Trains a decoder, new or from a Hugging Face directory, on the domains of a recipe or on files.
#: DIR/model becomes a Hugging Face directory with a model card; beside it lie run.json (all
#: values), metrics.jsonl (a line a step), an event file for TensorBoard, evaluations.jsonl and
#: checkpoints. A stopped or killed run goes on to the same bits; a finished one does nothing.
#:
#:   --config FILE    JSON, see below
#:   --set KEY=VALUE  overrides one value, as in training.steps=100; may be repeated
#:   --out DIR        of the run (default results/train/NAME of FILE)
#:   --resume WHEN    auto (default) or never, which begins anew
#:   --processes N    of this machine share each batch and the threads (default 1)
#:   --print-config   prints all values, defaults too, and ends
#:
#: Config (one of each | must be given; ... have defaults)
#:   model      from: DIR | config: {as config.json}, init, seed; dtype
#:   data       recipe: NAME, domains | files: [[NAME=]FILE, ...]; length; weights,
#:              tokenizer: bytes | FILE | model, separator
#:   training   steps, batch_size, learning_rate; optimizer (adamw, sgd, adafactor), betas, eps,
#:              momentum, weight_decay, no_decay, schedule (constant, cosine, wsd), warmup_steps,
#:              decay_steps, min_learning_rate, clip_norm, precision (bfloat16), accumulate,
#:              checkpoint_every, keep, seed, shard_optimizer (true, false)
#:   eval       every: N steps; tokens or documents of each domain, domains, split | files; prompt
#:              and sample_tokens for a sample. Without this section nothing is measured.
#:   licence    of the model, for its card ("unknown" unless stated)
#:
#: The share that progress shows is of a matrix product's speed, measured at the start.
#: PAPERLAB_NUM_THREADS sets the threads of each process, PAPERLAB_PROCESS_TIMEOUT the seconds
#: after which one that does not answer is given up (1800). Exit code: 0; 1 with one line on stderr;
#: 2 for an error of the command line or the config; 130 after Ctrl-C, which writes a checkpoint.
#: Python: paperlab.train.fit.
#:
#: Example: tiny.json stands in libpaperlab/paperlab/train/README.md
#:   ./paperlab train --config tiny.json --set training.steps=200 --out results/train/tiny

source "$ROOT/scripts/build_tree.sh"

parse_options --config= --set=+ --out= --resume= --processes= --print-config -- "$@"
no_arguments
[[ -v OPTION[config] ]] || fail 2 "needs --config FILE"
[[ -f ${OPTION[config]} && -r ${OPTION[config]} ]] ||
  fail 2 "cannot read the file '${OPTION[config]}' of --config"
if [[ -v OPTION[resume] ]]; then
  contains "${OPTION[resume]}" auto never ||
    unknown "paperlab train" "value of --resume" "${OPTION[resume]}" auto never
fi
name=${OPTION[config]##*/}
out=${OPTION[out]:-$(default_results)/train/${name%.*}}

words=("--config=${OPTION[config]}" "--out=$out")
[[ ! -v OPTION[resume] ]] || words+=("--resume=${OPTION[resume]}")
[[ ! -v OPTION[processes] ]] || words+=("--processes=${OPTION[processes]}")
[[ ! -v OPTION[print-config] ]] || words+=(--print-config)
for ((i = 1; i < ${#REPEATED[@]}; i += 2)); do words+=("--set=${REPEATED[i]}"); done

prepare run paperlab_run
exec_paperlab train "${words[@]}"
