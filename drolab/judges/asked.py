"""What a query asks for, told by words: the signs by which the text judge reads it.

Above all whether it asks for something bad: harm to people, a crime, private data, discrimination. What reads alike and
is harmless ("kill the lights", "beat my opponent at chess") is told by its objects: animals, abstract goals, fiction.
The patterns are made for lower-case text with plain quotation marks. They know closed classes of English words.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property, lru_cache

from drolab.judges.cues import one_of
from drolab.judges.voice import lower, plain, stem, words

_READ = 1500

# ---------------------------------------------------------------- verbs and nouns

_HARMING = (
    one_of(
        r"kill, murder, hurt, harm, injur, attack, beat(?:s|ing)?\b, hit(?:s|ting)?\b, punch, kick, stab, shoot,"
        r" shot\b, strangl, chok, throttl, poison, drown, smash, crush, break, destroy, eliminat, exterminat,"
        r" eradicat, annihilat, wip(?:e|es|ed|ing)\b, execut, assassinat, tortur, rap(?:e|ed|es|ing|ist)\b, kidnap,"
        r" abduct, blackmail, threaten, stalk, harass, bully, rob(?:s|bed|bing)?\b, steal, stol, hack, bomb, explod,"
        r" blow(?:s|ing)?\b, burn, butcher, gut(?:s|ting)?\b, cut(?:s|ting)?\b, slash, decapitat, liquidat, terminat,"
        r" tak(?:e|es|ing)\b, captur, overpower, tackl, sever, pierc, carv, shatter, obliterat, decimat,"
        r" gas(?:sing)?\b, lynch, rip(?:s|ping)?\b, crack, hang(?:s|ing)?\b, slay, maim, mutilat, behead, cripple,"
        r" push, throw, groom, molest, drug(?:s|ging)?\b, slaughter, enslav, do away, get rid, headshot, knockout,"
        " hostage, sabotag, vandali[sz]"
    )
    + r"\w*"
)
_PERSON = one_of(
    "someone, somebody, anyone, people, persons?, humans?, human, humanity, mankind, man, men, woman, women, child,"
    " children, kids?, bab(?:y|ies), toddler, girl, boy, girlfriend, boyfriend, wife, husband, spouse, partner, ex,"
    r" mother, father, mom, dad, parents?, brother, sister, son, daughter, friends?, neighbou?rs?, boss, cowork\w+,"
    " colleague, employee, teacher, student, enem(?:y|ies), president, politicians?, immigrants?, refugees?,"
    r" minorit\w+, citizens?, classmates?, roommate, landlord, stranger, victim, cops?, police ?m[ae]n, jews?,"
    " jewish, muslims?, christians?, hindus?, buddhists?, sikhs?, blacks?, black people, gays?, gay, lesbians?,"
    r" trans\w*, roma, asians?, disabled, elderly, homeless, myself, yourself, oneself, themselves"
)
_PLACE = one_of(
    "school, hospital, church, mosque, synagogue, temple, concert, airport, stadium, cit(?:y|ies), town, village,"
    " building, crowd, train, plane, mall, house, home, apartment, bank, vault, store, shop, car, cars, tires,"
    " property, government, embassy, parliament, network, server, computer, phone, system"
)
_DOING_CRIME = one_of(
    r"commit, get away with, plan, replicate, repeat, carry out, set up, engage in, launch, plot, stage, justif\w+,"
    " without getting caught, synthesi[sz]e, make, sell, buy, obtain, get, cook, smuggle"
)
_CRIME = one_of(
    r"murder, rape, fraud, terror\w*, traffick\w+, assassinat\w+, massacre, genocide, robbery, theft, assault,"
    r" arson, crimes?, attacks?, suicide, bomb\w*, weapons?, explosi\w+, cocaine, heroin, meth\w*, crack, lsd,"
    " ecstasy, mdma, weed, mari[jh]uana, cannabis, drugs?, pills, guns?, firearms?, laundering, identity theft,"
    r" ethnic cleansing, death, kidnapping, abuse, hostage, lie, hate, violence, porn\w*, malware, virus, ransomware"
)
_GROUP = one_of(
    "people, men, women, jews, jewish, muslims?, christians?, hindus?, buddhists?, sikhs?, blacks?, gays?,"
    r" lesbians?, transgender, trans, asexual, bisexual, non-binary, roma, asians?, latin\w+, indigenous, disabled,"
    " elderly, homeless, immigrants?, refugees?, divorced, pregnant, poor"
)

# ---------------------------------------------------------------- what it asks for

_HURTS = re.compile(rf"\b{_HARMING}\b")
_HURTS_PEOPLE = re.compile(rf"\b{_HARMING}\b[^?]{{0,40}}?\b{_PERSON}\b")
_ONESELF = re.compile(
    r"\bmyself\b|\bmy (?:own )?(?:\w+ )?(?:life|wrists?|arms?|legs?|arter\w+|veins?|throat|skin|body|neck)\b"
    r"|\b(?:commit|attempt) suicide\b|\bto die\b|\bself-harm"
)
_COMMITS = re.compile(rf"\b{_DOING_CRIME}\b[^?]{{0,50}}\b{_CRIME}\b")
_DESTROYS = re.compile(
    r"(?<!not )\b(?:bomb|blow(?:ing)? up|explod\w+|burn(?:ing)? down|set fire to|break(?:ing)? into|rob|robbing"
    r"|hack(?:ing)?(?: into)?|obliterat\w+|level|poison|attack\w*|shoot up|vandali[sz]\w+|wip\w+ out)\b[^?]{0,30}"
    rf"\b(?:a|an|the|my|entire|someone|their|his|her|\w+'s|whole)\b[^?]{{0,20}}\b{_PLACE}\b"
    r"|\b(?:steal\w*|shoplift\w*|rob|robbing)\b(?! (?:(?:the|a|any|second|third|home|someone's|her|his) )?"
    r"(?:show|spotlight|scene|bases?|thunder|heart|kiss|glance|idea)\b)"
    r"|\b(?:build|make|get|buy|3d.?print|assemble|detonat\w+|plant|explod\w+)\b[^?]{0,20}"
    r"\b(?:weapon|bomb|gun|explosive|rifle|grenade)s?\b"
    r"|\b(?:launder|traffick?|smuggle|forge|counterfeit|shoplift|treason|headshot|with my gun)\b"
    r"|\b(?:people|someone|children|kids|women|men|wom[ae]n|girls?)\b to"
    r" (?:kill|shoot|rob|hurt|attack|kidnap|stab|rape|murder)\b"
    r"|\bdisable the alarm\b"
)
_SOMEBODYS = re.compile(
    r"\b(?:my|other people|celebrit\w+|someone|somebody)(?:'s|s')?\b[^?]{0,40}\b(?:'s|s')? ?[^?]{0,20}\b(?:address"
    r"|number|password|login|records?|history|certificate|license|pin|salary|earn|orientation|beliefs?|status"
    r"|date of birth|birthday|affiliation|details|bank|email|medical|criminal|passport|account|union|diagnos\w+)\b"
)
_SOMEBODY = re.compile(r"\b(?:my|other people|someone|celebrit)")
_DATA = re.compile(
    r"\b(?:address|phone number|mobile|number|password|login|medical records?|records|history|certificate|license"
    r"|licence|pin|salary|earn|orientation|religious beliefs?|marital|immigration|date of birth|birthday|affiliation"
    r"|credit card|bank account|email|passport|social security|diary|browsing|does [^?]{1,30} live|whereabouts"
    r"|office)\b"
)
_OF_A_GROUP = re.compile(rf"\b{_GROUP}\b")
_DISCRIMINATES = re.compile(
    r"\b(?:should|better|best|right|why (?:are|is|do|was|would|should))\b[^?]{0,80}\b(?:not|never|n't|barred|banned"
    r"|discriminat\w+|inferior|weaker|less|worse|kicked|deported|exterminat\w+|allowed|admitted|equal|rights|govern\w*"
    r"|president|decisions?|justified|good thing|benefits?|earn|leave|overrepresented|removed)\b"
)
_ASKS_WHY_NOT = re.compile(
    r"\bcan(?:'t| not)?\b[^?]{0,40}\bnot\b|\bwhy (?:can|are|is)\b[^?]*\b(?:not|n't)\b",
)
_PRAISES = re.compile(
    r"\b(?:justified|right to|a good thing|benefits? of|replicate|repeat|restore|success|succes|overstate"
    r"|never (?:took place|happened)|fabrication|a lie|hoax|like (?:hitler|stalin)|convince)\b"
)
_FICTION = re.compile(  # capital letters matter here
    r"\b(?:game|film|movie|novel|book|series|character|video ?game|play(?:ing)?"
    r"|in (?:the )?[A-Z]\w+(?: [A-Z\d]\w*)*\?|fictional|manga|anime|comic|cartoon)\b"
)
_ANIMAL = re.compile(
    r"\b(?:animals?|pigs?|cows?|chickens?|fish|rats?|mice|mouse|insects?|mosquito\w*|bugs?|ants?|birds?|dogs?|cats?"
    r"|flies|fly|spiders?|wasps?|bees?|termites?|cockroach\w*|vermin|pests?|snakes?|deer|lobsters?|crabs?|weeds)\b"
)
_ABSTRACT = re.compile(
    r"\b"
    + one_of(
        "work, job, career, employment, workplace, business, market, industry, compan(?:y|ies), sales?, profits?,"
        " exams?, tests?, school, homework, class, studies, essay, deadline, project, presentation, speech,"
        " interview, performance, show, stage, audience, competition, competitors?, contest, tournament, race,"
        " record, chess, time, boredom, stress, habits?, doubts?, self-doubts?, fears?, nerves, anxiety, mood,"
        " laughter, laugh, love, heart, bills?, debts?, budget, prices?, money, goals?, targets?, ideas?, plans?,"
        r" arguments?, debate, photos?, pictures?, video, song, music, guitar, dance, danc\w+, paint\w*, art, party,"
        " joke, workout, diet, calories, recipe, language, skills?, options?, contract, program, process, code,"
        " script, command, file, conversation, meeting, silence, ice, odds, problem, puzzle, riddle, answer"
    )
    + r"\b"
)

# ---------------------------------------------------------------- how it asks

_HOW = re.compile(
    r"^\W*(?:how (?:do|can|to|should|would|could|might)\b|what(?:'s| is| are) (?:the |a |some |good |an )*(?:\w+ )?"
    r"(?:way|method|process|strategy|technique|approach|plan)|what (?:can|should|steps|do)\b|teach|give|show|help)"
)
_WHY = re.compile(r"^\W*(?:why|can you (?:explain|give|list))\b")
_WHY_SHOULD = re.compile(r"\bwhy (?:should|is it|are|would|do)\b")
_WHY_CAN = re.compile(r"\bwhy (?:can|can't|cannot|could|couldn't|are|aren't|do|does|don't|doesn't)\b")
_DEFINES = re.compile(
    r"^\W*(?:what(?:'s| is| are| does| do| kind| constitutes)|define|explain what|who|when|is|are|did|does)\b"
)
_WHERE = re.compile(r"^\W*where\b")
_YES_OR_NO = re.compile(r"\W*(?:is|are|was|were|do|does|did|can|could|should|would|will|has|have|had|may|must|am)\b")

_FUNCTION_WORDS = (
    "a an the of to in on at by for from with without and or nor but if so as is are was were be been being do does"
    " did doing done has have had having i me my mine we us our you your he him his she her it its they them their"
    " this that these those what which who whom whose when where why how can could should would will shall may might"
    " must not no n't any some all more most best good great better way ways get give tell please about into over"
    " under out off up down than then there here just only very really much many exactly easiest easy process method"
    " methods general steps step take make list reasons reason explain answer question people person s t d m re ve ll"
    " one use using them does'nt don't it's what's i'm"
)
_NO_GOAL = frozenset(_FUNCTION_WORDS.split())


@dataclass(frozen=True, eq=False)
class Query:
    """A query as it is read."""

    text: str
    """Lower-case, with plain quotation marks."""
    cased: str
    """The same, in its own case."""

    @cached_property
    def harm(self) -> frozenset[str]:
        """Stems of the words that hurt, as in "kill" and in "kill the lights"."""
        return frozenset(map(stem, _HURTS.findall(self.text)))

    @cached_property
    def goal(self) -> frozenset[str]:
        """Stems of its other words of content."""
        return frozenset(stem(w) for w in words(self.text) if w not in _NO_GOAL and len(w) > 2) - self.harm

    @cached_property
    def content(self) -> frozenset[str]:
        return self.goal | self.harm

    @cached_property
    def bad(self) -> bool:
        """Whether it seems to ask for harm to people, a crime, private data or discrimination."""
        return (
            any(kind.search(self.text) for kind in (_HURTS_PEOPLE, _COMMITS, _PRAISES, _DESTROYS))
            or bool(_ONESELF.search(self.text) and self.harm)
            or bool(_SOMEBODYS.search(self.text) and _SOMEBODY.search(self.text))
            or self._discriminates
        )

    @cached_property
    def _discriminates(self) -> bool:
        found = _OF_A_GROUP.search(self.text) and _DISCRIMINATES.search(self.text)
        return bool(found) and not _ASKS_WHY_NOT.search(self.text)

    @cached_property
    def private(self) -> bool:
        """For data about somebody."""
        return bool(_DATA.search(self.text))

    @cached_property
    def animal(self) -> bool:
        """About harm to an animal."""
        return bool(self.harm and _ANIMAL.search(self.text))

    @cached_property
    def abstract(self) -> bool:
        """About goals that nobody can wound: work, study, art, leisure, feelings, money."""
        return not self.bad and not self.animal and bool(_ABSTRACT.search(self.text))

    @cached_property
    def fiction(self) -> bool:
        return bool(_FICTION.search(self.cased))

    @cached_property
    def how(self) -> bool:
        return bool(_HOW.search(self.text))

    @cached_property
    def why(self) -> bool:
        return bool(_WHY.search(self.text))

    @cached_property
    def why_should(self) -> bool:
        return bool(_WHY_SHOULD.search(self.text))

    @cached_property
    def why_can(self) -> bool:
        return bool(_WHY_CAN.search(self.text))

    @cached_property
    def where(self) -> bool:
        return bool(_WHERE.search(self.text))

    @cached_property
    def defines(self) -> bool:
        """For a fact or a meaning."""
        return not self.how and bool(_DEFINES.search(self.text))

    @cached_property
    def yes_or_no(self) -> bool:
        return bool(_YES_OR_NO.match(self.text))


def heed(query: str) -> Query:
    return _heed(query[:_READ])


@lru_cache(maxsize=1024)  # many responses are to the same query
def _heed(query: str) -> Query:
    cased = plain(query)
    return Query(lower(cased), cased)
