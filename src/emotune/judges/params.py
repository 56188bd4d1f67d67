"""Which judge a user wants."""

from emotune.core.sections import NotNegative, Section


class JudgeChoice(Section):
    """`embedded`, the judge that the judges stage trains; or one of the Hub or a folder, pinned, its labels mapped."""

    name: str
    revision: str | None
    labels: dict[str, str] | None

    @property
    def is_embedded(self) -> bool:
        return self.name == "embedded"


class EmotionChoice(JudgeChoice):
    """A judge of emotions; null leaves it to the judges stage how far it is divided by its prior."""

    tau: NotNegative | None


class EmotionJudge(Section):
    """Of all that `evaluate` or `reward` says, which judge of emotions."""

    emotion_judge: EmotionChoice


class JudgesOf(EmotionJudge):
    """Of all that `evaluate` or `reward` says, which two judges."""

    gibberish_judge: JudgeChoice


class Judges(Section):
    share_dialogues: bool
