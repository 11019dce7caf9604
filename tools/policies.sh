#!/bin/sh
# A policy of preset small for each task, after docs/recipe.md: demonstrations, training, then two rounds of corrections of its
# own rollouts, each with more training. Hours of simulation on two cores; training takes minutes on
# a GPU and a day on a CPU. Goes on where it was stopped.
# Usage: policies.sh PYTHON
set -e
python=$1
# Task, demonstrations, how often the expert takes over in a correction.
for each in pushcube:400:0 pickcube:1700:0.25 stackcube:1700:0.25; do
  task=${each%%:*} takeover=${each##*:}
  episodes=${each#*:} episodes=${episodes%:*}
  data=data/$task-two tasks=$task run=runs/$task-small
  $python -m experiments.collect --task=$task --cameras=render,base --picture_every=4 --episodes=$episodes --out=$data
  $python -m experiments.finetune --task=$task --preset=small --data=$data --workdir=$run
  for round in 1 2; do
    corrected=data/$task-corrected-$round next=runs/$task-small-corrected-$round
    $python -m experiments.collect --task=$task --cameras=render,base --picture_every=8 --policy=$run --nonoise \
      --takeover=$takeover --seed=${round}000000 --episodes=700 --out=$corrected
    data=$data,$corrected tasks=$tasks,$task
    $python -m experiments.finetune --task=$tasks --preset=small --data=$data --init=$run --workdir=$next
    run=$next
  done
  for protocol in rdt maniskill; do
    $python -m experiments.rollout --task=$task --checkpoint=$run --protocol=$protocol
  done
  runs=$runs${runs:+,}$run
done
$python -m experiments.figures --runs=$runs --out=report
