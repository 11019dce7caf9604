#!/bin/sh
# A policy of preset small for each task, after docs/recipe.md: demonstrations, training, then two rounds of corrections of its
# own rollouts, each with more training, in which all frames are predicted, too. Hours of simulation on two cores; training takes minutes on
# a GPU and a day on a CPU. Goes on where it was stopped.
# Usage: policies.sh PYTHON
set -e
python=$1
# Task, demonstrations, cameras, most pixels by which a crop lies off, how often the expert takes over in a correction.
while read -r task episodes cameras shift takeover <&3; do
  data=data/$task-demonstrations tasks=$task run=runs/$task-small
  looks="--preset=small --cameras=$cameras --picture_shift=$shift"
  $python -m experiments.collect --task="$task" --cameras="$cameras" --picture_every=4 --episodes="$episodes" --out="$data"
  $python -m experiments.finetune --task="$task" $looks --data="$data" --workdir="$run"
  for round in 1 2; do
    corrected=data/$task-corrected-$round next=runs/$task-small-corrected-$round
    $python -m experiments.collect --task="$task" --cameras="$cameras" --picture_every=8 --policy="$run" --nonoise \
      --takeover="$takeover" --seed="${round}000000" --episodes=700 --out="$corrected"
    data=$data,$corrected tasks=$tasks,$task
    $python -m experiments.finetune --task="$tasks" $looks --frame_share=1 --frame_shift=4 --data="$data" --init="$run" --workdir="$next"
    run=$next
  done
  for protocol in rdt maniskill; do
    $python -m experiments.rollout --task="$task" --checkpoint="$run" --protocol="$protocol"
  done
  runs=$runs${runs:+,}$run
done 3<<TASKS
pushcube 1200 render 2 0
pickcube 1700 render,base 0 0.25
stackcube 1700 render,base 0 0.25
TASKS
$python -m experiments.figures --runs="$runs" --out=report
