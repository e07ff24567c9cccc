"""Irregular English forms: the past of verbs and the plural of nouns that no rule of endings derives.

Forms that are more often another word are left out: "rose", "lay", "found" and, for the verb, "leaves".
"""

from __future__ import annotations

from typing import Final

_FORMS: Final = """
arise arose arisen; awake awoke awoken; beat beaten; become became; begin began begun; bend bent; bind bound; bite bit
bitten; bleed bled; blow blew blown; break broke broken; breed bred; bring brought; build built; burn burnt; buy bought;
catch caught; choose chose chosen; cling clung; come came; creep crept; dig dug; draw drew drawn; dream dreamt; drink
drank drunk; drive drove driven; dwell dwelt; eat ate eaten; fall fell fallen; feed fed; feel felt; fight fought; flee
fled; fly flew flown; forbid forbade forbidden; forget forgot forgotten; forgive forgave forgiven; freeze froze frozen;
get got gotten; give gave given; go went gone; grow grew grown; hang hung; hear heard; hide hid hidden; hold held; keep
kept; kneel knelt; know knew known; lead led; lean leant; leap leapt; learn learnt; leave left; lend lent; light lit;
lose lost; make made; mean meant; meet met; mow mown; pay paid; ride rode ridden; ring rang rung; run ran; say said; see
saw seen; seek sought; sell sold; send sent; sew sewn; shake shook shaken; shine shone; shoot shot; show shown; shrink
shrank shrunk; sing sang sung; sink sank sunk; sit sat; sleep slept; slide slid; smell smelt; sow sown; speak spoke
spoken; spell spelt; spend spent; spill spilt; spin spun; spoil spoilt; spring sprang sprung; stand stood; steal stole
stolen; stick stuck; sting stung; strike struck; string strung; strive strove; swear swore sworn; sweep swept; swell
swollen; swim swam swum; swing swung; take took taken; teach taught; tear tore torn; tell told; think thought; throw
threw thrown; understand understood; wake woke woken; wear wore worn; weave wove woven; weep wept; win won; withdraw
withdrew withdrawn; write wrote written; overtake overtook overtaken; undertake undertook undertaken; rebuild rebuilt;
repay repaid; resell resold; rewrite rewrote rewritten; undergo underwent undergone; withhold withheld; foresee foresaw
foreseen; mistake mistook mistaken; undo undid undone;
calf calves; child children; elf elves; foot feet; goose geese; half halves; knife knives; loaf loaves; man
men; mouse mice; ox oxen; scarf scarves; shelf shelves; thief thieves; tooth teeth; wife wives; wolf wolves; woman women
"""
BASE_OF: Final = {form: base for base, *forms in map(str.split, _FORMS.split(";")) for form in forms}
"""The base of each irregular form."""
