#!/usr/bin/env bash
# The commands of docs/reproduce.md, one after the other, on the built-in world: from prompts to the table of verdicts.
# With MODEL, PROMPTS, TEST and SCORERS of your own they run on a real model. A run that was stopped goes on.
#
#   scripts/reproduce.sh work/reproduce
#   DOMAINS=cartoon METHODS="sft mapo" scripts/reproduce.sh work/reproduce
set -euo pipefail

WORK=${1:-work/reproduce}
MODEL=${MODEL:-mini}           # what is trained, and what makes the pairs
PROMPTS=${PROMPTS:-mini:train} # of the pairs
TEST=${TEST:-mini:test}        # of the pictures that are judged; none of them is among PROMPTS
SCORERS=${SCORERS:-mini}
JUDGE=${JUDGE:-mini-learned:prompt_following} # makes the pairs of general taste
PAIRS=${PAIRS:-256} STEPS=${STEPS:-80} RATE=${RATE:-1e-4} SEEDS=${SEEDS:-0-1}
DOMAINS=${DOMAINS:-general safety cartoon}    # by the paper's order of mismatch
METHODS=${METHODS:-sft dpo mapo mapo_aaai}

mkdir -p "$WORK"
mapo sample --model "$MODEL" --prompts "$TEST" --seeds "$SEEDS" --out "$WORK/before"
mapo score "$WORK/before" --scorer "$SCORERS" --out "$WORK/before.parquet"

for domain in $DOMAINS; do
    at="$WORK/$domain"
    mkdir -p "$at"
    case $domain in
    general) recipe="best-of-k --judge $JUDGE" goal=prompt_following ;;
    safety) recipe=pick-safety-hazard goal=-hazard ;;
    cartoon) recipe=pick-style-cartoon goal=cartoon ;;
    *) echo "There is no domain $domain; there are general, safety and cartoon." >&2 && exit 2 ;;
    esac
    [ -e "$at/pairs/set.json" ] ||
        mapo build $recipe --model "$MODEL" --prompts "$PROMPTS" --num-pairs "$PAIRS" --out "$at/pairs"
    mapo mismatch --model "$MODEL" --pairs "$at/pairs" --num-pairs 32 --out "$at/mismatch.json"
    mapo encode --model "$MODEL" --pairs "$at/pairs" --out "$at/cache"
    for method in $METHODS; do
        run="$at/$method"
        mapo train --model "$MODEL" --pairs "$at/pairs" --objective "$method" --set optim.lr="$RATE" \
            --set train.steps="$STEPS" --out "$run"
        mapo sample --model "$run" --prompts "$TEST" --seeds "$SEEDS" --out "$run-images"
        mapo score "$run-images" --scorer "$SCORERS" --out "$run.parquet"
        mapo report --before "$WORK/before" --after "$run-images" --scores "$WORK/before.parquet" \
            --scores "$run.parquet" --goal="$goal" --run "$run" --out "$run.html" | tee "$run.txt"
    done
done

echo
for domain in $DOMAINS; do
    for method in $METHODS; do
        echo "$domain, $method: $(head -n 1 "$WORK/$domain/$method.txt")"
    done
done
