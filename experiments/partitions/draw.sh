#!/usr/bin/env bash
# Draw six partitions of MNIST: bash experiments/partitions/draw.sh [FOLDER]
set -euo pipefail
here=$(dirname "$0")
out=${1:-$here}
draw() { fl partition "$here/mnist.yaml" "${@:2}" --plot "$out/$1.png" > /dev/null; }
draw dirichlet partition.alpha=0.1
draw pathological partition='{name: pathological, clients: 30, num_classes_per_partition: 2}'
draw shards partition='{name: shards, clients: 30}'
draw quantity partition='{name: quantity, clients: 200, law: lognormal}'
draw natural partition=natural
draw pfllib data='{name: mnist, pooled: true}' partition='{name: pfllib, clients: 20, alpha: 0.1}'
