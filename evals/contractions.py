"""The 120 contractions of the official VQA evaluation, as data: `dont` becomes `don't`.

Four keys hold capitals and never match, because answers are lower-cased first; `somebody'd` ->
`somebodyd` is a slip of the official table. Both stay, so that scores can be compared.

The table is taken from GT-Vision-Lab/VQA, `vqaEval.py`, under the BSD 2-Clause licence:

    Copyright (c) 2014, Aishwarya Agrawal. All rights reserved.

    Redistribution and use in source and binary forms, with or without modification, are
    permitted provided that the following conditions are met:

    1. Redistributions of source code must retain the above copyright notice, this list of
    conditions and the following disclaimer.

    2. Redistributions in binary form must reproduce the above copyright notice, this list of
    conditions and the following disclaimer in the documentation and/or other materials provided
    with the distribution.

    THIS SOFTWARE IS PROVIDED BY THE COPYRIGHT HOLDERS AND CONTRIBUTORS "AS IS" AND ANY EXPRESS
    OR IMPLIED WARRANTIES, INCLUDING, BUT NOT LIMITED TO, THE IMPLIED WARRANTIES OF
    MERCHANTABILITY AND FITNESS FOR A PARTICULAR PURPOSE ARE DISCLAIMED. IN NO EVENT SHALL THE
    COPYRIGHT OWNER OR CONTRIBUTORS BE LIABLE FOR ANY DIRECT, INDIRECT, INCIDENTAL, SPECIAL,
    EXEMPLARY, OR CONSEQUENTIAL DAMAGES (INCLUDING, BUT NOT LIMITED TO, PROCUREMENT OF
    SUBSTITUTE GOODS OR SERVICES; LOSS OF USE, DATA, OR PROFITS; OR BUSINESS INTERRUPTION)
    HOWEVER CAUSED AND ON ANY THEORY OF LIABILITY, WHETHER IN CONTRACT, STRICT LIABILITY, OR
    TORT (INCLUDING NEGLIGENCE OR OTHERWISE) ARISING IN ANY WAY OUT OF THE USE OF THIS SOFTWARE,
    EVEN IF ADVISED OF THE POSSIBILITY OF SUCH DAMAGE.
"""

_PAIRS = """
aint ain't, arent aren't, cant can't, couldve could've, couldnt couldn't, couldn'tve
couldn't've, couldnt've couldn't've, didnt didn't, doesnt doesn't, dont don't, hadnt hadn't,
hadnt've hadn't've, hadn'tve hadn't've, hasnt hasn't, havent haven't, hed he'd, hed've he'd've,
he'dve he'd've, hes he's, howd how'd, howll how'll, hows how's, Id've I'd've, I'dve I'd've, Im
I'm, Ive I've, isnt isn't, itd it'd, itd've it'd've, it'dve it'd've, itll it'll, let's let's,
maam ma'am, mightnt mightn't, mightnt've mightn't've, mightn'tve mightn't've, mightve might've,
mustnt mustn't, mustve must've, neednt needn't, notve not've, oclock o'clock, oughtnt oughtn't,
ow's'at 'ow's'at, 'ows'at 'ow's'at, 'ow'sat 'ow's'at, shant shan't, shed've she'd've, she'dve
she'd've, she's she's, shouldve should've, shouldnt shouldn't, shouldnt've shouldn't've,
shouldn'tve shouldn't've, somebody'd somebodyd, somebodyd've somebody'd've, somebody'dve
somebody'd've, somebodyll somebody'll, somebodys somebody's, someoned someone'd, someoned've
someone'd've, someone'dve someone'd've, someonell someone'll, someones someone's, somethingd
something'd, somethingd've something'd've, something'dve something'd've, somethingll
something'll, thats that's, thered there'd, thered've there'd've, there'dve there'd've, therere
there're, theres there's, theyd they'd, theyd've they'd've, they'dve they'd've, theyll they'll,
theyre they're, theyve they've, twas 'twas, wasnt wasn't, wed've we'd've, we'dve we'd've, weve
we've, werent weren't, whatll what'll, whatre what're, whats what's, whatve what've, whens
when's, whered where'd, wheres where's, whereve where've, whod who'd, whod've who'd've, who'dve
who'd've, wholl who'll, whos who's, whove who've, whyll why'll, whyre why're, whys why's, wont
won't, wouldve would've, wouldnt wouldn't, wouldnt've wouldn't've, wouldn'tve wouldn't've, yall
y'all, yall'll y'all'll, y'allll y'all'll, yall'd've y'all'd've, y'alld've y'all'd've, y'all'dve
y'all'd've, youd you'd, youd've you'd've, you'dve you'd've, youll you'll, youre you're, youve
you've
"""

CONTRACTIONS: dict[str, str] = dict(
    (pair.split()[0], pair.split()[1]) for pair in _PAIRS.split(",")
)
