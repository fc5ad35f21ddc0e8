"""Responses that are nothing but a refusal: a bare "no", and the first words of a refusal in other languages.

Both are made for text with plain quotation marks; the first one for lower-case text.
"""

from __future__ import annotations

import re

FLAT_NO = re.compile(
    r"\W*(?:no|nope|never|no way|absolutely not|not a chance|i (?:refuse|decline)|i won't|i can't|i cannot|i'd rather"
    r" not)"
    r"\W*\Z"
)
"""All that is said."""

IN_OTHER_LANGUAGES = re.compile(
    r"\s*(?:[^\w\n]{0,3})(?:"
    # Spanish
    r"(?:lo siento|lo lamento|disculp\w+|perd[oó]n\w*|lamentablemente|me temo)\b[^.\n]{0,80}"
    r"\bno (?:puedo|podr|est|me es|soy|voy)|no puedo (?:ayud|proporcion|responder|ofrecer|cumplir|asistir|dar)|"
    # French
    r"(?:je suis (?:vraiment |sincèrement )?désolée?|désolée?|je regrette|je m'excuse|malheureusement)\b[^.\n]{0,80}"
    r"\bje (?:ne|n')|je ne (?:peux|suis|pourrai) pas|"
    # German
    r"(?:es tut mir (?:sehr )?leid|tut mir leid|leider|entschuldigung|entschuldige|ich bedauere?)\b[^.\n]{0,80}"
    r"\b(?:kann|darf|bin|nicht|werde)|ich kann (?:\w+ ){0,6}nicht|"
    # Italian
    r"(?:mi dispiace|mi spiace|purtroppo|spiacente)\b[^.\n]{0,80}\bnon\b|non posso (?:aiut|forn|rispond|assist)|"
    # Portuguese
    r"(?:desculpe|sinto muito|lamento|infelizmente|me desculpe|peço desculpa)\b[^.\n]{0,80}\bn[ãa]o\b"
    r"|n[ãa]o posso (?:ajud|fornec|respond|auxili)|"
    # Dutch, Polish
    r"(?:het spijt me|sorry|helaas)\b[^.\n]{0,60}\bik (?:kan|mag)\b"
    r"|(?:przykro mi|przepraszam|niestety)\b[^.\n]{0,60}\bnie\b|"
    # Nordic languages, Czech, Slovak, Hungarian, Romanian, Turkish, Indonesian, Vietnamese
    r"(?:jag är ledsen|tyvärr|beklager|jeg beklager|undskyld|desværre|valitettavasti|olen pahoillani|omlouvám se"
    r"|je mi líto|bohužel|ľutujem|sajn[aá]lom|îmi pare rău|maalesef|üzgünüm|maaf|xin lỗi|rất tiếc)\b|"
    # Russian, Ukrainian, Bulgarian
    r"(?:извините|простите|к сожалению|мне жаль|сожалею|прошу прощения|вибачте|на жаль|мені шкода|съжалявам)"
    r"|(?:я не могу|я не можу)|"
    # Chinese, Japanese, Korean
    r"(?:很抱歉|抱歉|对不起|對不起|非常抱歉|不好意思|我无法|我無法|我不能)|(?:申し訳|すみません|ごめんなさい|恐れ入ります)|(?:죄송|미안|유감)|"
    # Arabic and Persian, Hindi, Thai, Hebrew, Greek, Bengali
    r"(?:عذر|آسف|أعتذر|أنا آسف|للأسف|لا يمكنني|لا أستطيع|متأسف|متاسف)|(?:क्षमा|मुझे खेद|माफ़|माफ|मुझे अफ़सोस)"
    r"|(?:ขออภัย|ขอโทษ)"
    r"|(?:אני מצטער|מצטער|סליחה|לצערי)|(?:λυπάμαι|συγγνώμη|δυστυχώς)|(?:দুঃখিত|আমি দুঃখিত)"
    r")",
    re.IGNORECASE,
)
"""The most common first words of a refusal in other languages, at the start of a response."""
