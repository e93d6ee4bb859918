"""Texts of the report, for a reader who is new to the method."""

from __future__ import annotations

SUMMARY = (
    "A small detector, the student, was trained with a big one, the teacher, looking on. This page shows "
    "what it was asked to learn, how far it got, and what that did to its detections."
)
ALONE = (
    "A detector was trained without a method of distillation. This page shows how its training went, and "
    "what it detects."
)

IDEA = (
    "Matching Guided Distillation (MGD; Yue, Deng, Zhou; ECCV 2020; not masked generative distillation, "
    "which shares the initials) compares the features of the two networks at a few places, the taps. "
    "Features are stacks of maps, the channels, each of which answers to some pattern in the image. The "
    "teacher usually has more of them than the student, and in another order, so it has to be settled which "
    "of them the student is to learn where:"
)
STEPS = (
    "Match. Both networks look at the same training images. The cost of a pair of channels is how unlike "
    "their maps are. An assignment problem then gives every student channel a group of teacher channels of "
    "its own, at the least total cost.",
    "Pool. The teacher channels of a group become one target: the student's channel cannot follow several "
    "at once.",
    "Pull. A loss, beside the detector's own, draws each student channel towards its target. No layer "
    "between the two networks has to be learnt for it, but for a norm on the student's side that is left "
    "behind after training.",
    "Repeat. As the student's channels change, another matching may suit them better: now and then it is "
    "solved again.",
)

MATCHING = (
    "Taken from the checkpoint as the training left it; nothing was solved again for this page. The costs "
    "are those that the last solution was made from{online}, a mean over {images:.0f} images."
)
ONLINE = " (this run matches online, so they have gone on a little since)"
CONTROL = (
    " This run is a control: its assignment is {kind}, so it does not follow the costs, and there is no "
    "reason for matched pairs to be cheaper than others."
)
FEATURES = (
    "Three student channels of each tap, those whose groups cost least, middling and most, on {count} images "
    "of {dataset}. Features are coarse: one cell stands for {strides} pixels of the image that the network "
    "gets."
)
DETECTIONS = (
    "{count} images at equal distances in {dataset}, so that nobody picked them. A solid box is right: its "
    "class is right and it overlaps the true box by half or more (IoU of 0.5, counted as for AP50). A dashed "
    "one is wrong: another class, badly placed, or a second box on one object. Behind the class stands the "
    "score in %; boxes below {least} are not drawn, nor those in a crowd, which count neither way. A few "
    "images are an illustration; the measure is AP over the whole set."
)
CURVES = (
    "From metrics.json, one line for each run; of the losses Detectron2 logs medians over 20 iterations. "
    "Panels have scales of their own."
)

WORDS = (
    (
        "AP",
        "Average precision, 0 to 100: how well detections agree with the labels, over all scores and "
        "classes.",
    ),
    ("Baseline", "The same student, trained without a teacher."),
    (
        "Channel",
        "One of the maps that a layer of a network gives: a number at every place, high where its pattern "
        "is.",
    ),
    (
        "Cost",
        "Of a pair of channels: the squared distance of the two maps, each scaled to length 1, mean over "
        "images. 0: the same pattern; 2: unrelated; 4: the opposite.",
    ),
    ("Group", "The teacher channels that are matched to one student channel."),
    (
        "Gradient ratio",
        "How hard a distillation loss pulls at a layer, relative to the detector's own losses.",
    ),
    (
        "Reducer",
        "The way in which a group becomes one target. The paper's choice for detection is absolute max "
        "pooling.",
    ),
    (
        "Tap",
        "A place in both networks at which their features are compared. res3, res4 and res5 are stages of a "
        "ResNet, each at half the resolution of the one before.",
    ),
)
