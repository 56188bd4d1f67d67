"""The embedded corpus: a grammar of everyday dialogues, deterministic from a seed, written for this project.

A dialogue is a scene: one topic and one thing, person, place and time that all its turns speak of. The user tells a
piece of news, the assistant reacts, the user adds to it. The news itself is even-tempered, so every emotion is a
believable reaction and only the emotion asked for says which one comes. A reply is put together from a lead, a body
and a close; some of them belong to two emotions ("No way!" is happy or surprised), so no judge can be perfect.

The last fifth of every table (at least one entry) is kept from the train split: validation and test speak of things,
people and places, and use phrases, that training never saw.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from emotune.core.dialogue import ASSISTANT, USER, Dialogue, Turn
from emotune.core.errors import InputError


def _table(text: str) -> dict[str, tuple[str, ...]]:
    """Lines of `key key: entry | entry`; an indented line goes on with the keys above it."""
    table: dict[str, tuple[str, ...]] = {}
    keys: list[str] = []
    for line in text.strip().splitlines():
        if not line.startswith(" "):
            head, line = line.split(":", 1)
            keys = head.split()
        for key in keys:
            table[key] = table.get(key, ()) + tuple(entry.strip() for entry in line.strip(" |").split("|"))
    return table


# Shares of the emotions before ECHO moves some neutral turns to the others.
WEIGHTS = {
    "neutral": 0.56,
    "anger": 0.07,
    "disgust": 0.065,
    "fear": 0.07,
    "happiness": 0.095,
    "sadness": 0.07,
    "surprise": 0.08,
}
# Moods last and are catching: the weight of the emotions of the last two turns is multiplied by this.
ECHO = 1.8
SHAPES = {"lead body": 7, "body close": 7, "body": 4, "lead close": 2, "lead body close": 2}

PRONOUNS = {
    "she": {"him": "her", "his": "her", "self": "herself"},
    "he": {"him": "him", "his": "his", "self": "himself"},
}
TIMES = _table("""
when: yesterday | this morning | last night | last week | on Sunday | two days ago | over the weekend | after lunch
     | this afternoon | last Tuesday | earlier today
soon: tomorrow | tonight | on Friday | next week | next month | on Monday | in two weeks | this weekend | on Thursday
     | the day after tomorrow
""")

# What the user says around the facts: how the news is broken, how the user feels, the answer to the assistant's mood.
OPENERS = _table("""
neutral: So, here is my news. | Have you heard? | Let me tell you something. | By the way.
     | I wanted to tell you something. | Did I tell you? | Listen. | There is some news. | Just so you know.
anger: I'm so angry right now. | You won't like this, and I hate it. | I could scream. | I've had enough.
     | This is so unfair. | I'm really annoyed. | I'm boiling with anger.
disgust: Something gross happened. | You'd better not be eating. | I still feel sick. | Yuck, listen to this.
     | This is nasty. | I have a revolting story.
fear: I'm a bit scared. | I'm really worried. | I'm so nervous today. | I hardly slept, I'm so anxious.
     | I'm afraid of something. | My heart is racing.
happiness: I have great news! | I'm in such a good mood! | I'm so excited! | I can't stop smiling!
     | What a lovely day I had! | I'm over the moon!
sadness: I feel a bit down. | I'm so sad today. | I've been crying. | I don't feel so good about this.
     | My heart is heavy. | I feel so blue today.
surprise: You'll never guess what happened! | I can't believe this! | Guess what! | Are you sitting down?
     | I'm still amazed! | Now this came out of the blue!
""")
MOODS = _table("""
neutral: That's how it is. | That's about all. | I thought you should know. | It's fine so far.
     | We'll see how it goes. | That's the whole story.
anger: It drives me mad. | I'm so cross with {who}. | I can't take this any more. | It makes me furious.
     | I won't put up with it. | I'm really angry about it. | It makes my blood boil.
disgust: It's so gross. | It makes me feel sick. | I find it disgusting. | I can't even look at it.
     | It's really revolting. | The whole thing is nasty. | I shudder at the sight.
fear: I'm scared. | It worries me a lot. | I'm so afraid of what comes next. | I feel nervous all the time.
     | It really frightens me. | I dread it. | I'm shaking.
happiness: I'm so happy about it! | I love it! | It makes me smile every time. | I'm really glad. | I feel so lucky!
     | It's wonderful. | I'm thrilled to bits!
sadness: It makes me so sad. | I could cry. | I feel so alone with it. | I'm heartbroken.
     | It's hard to be cheerful now. | I miss how things were. | I just want to weep.
surprise: I really didn't expect that. | I was speechless. | It still amazes me. | I had no idea!
     | I can hardly believe it. | Who would have thought? | My jaw dropped.
""")
ANSWERS = _table("""
neutral: Right. | That's true. | Exactly. | I think so too. | Yes, that makes sense. | Good point.
     | You're right about that.
anger: Please calm down. | I know, I know. | You have every right to be cross. | Don't be so hard on {who}.
     | It's not that bad. | There's no need to shout.
disgust: Come on, it's not that gross. | I know what you mean. | Don't make that face. | I felt the same at first.
     | You get used to it. | Don't be so picky.
fear: Don't worry so much. | It'll be all right. | I thought about that too. | We're being careful.
     | There's no danger. | Take a deep breath.
happiness: I'm glad you like it. | Thank you. | That's kind of you. | I hoped you'd say that.
     | {who} will like to hear that. | How nice of you.
sadness: Don't be sad. | Thank you for saying that. | I know how you feel. | It's not your fault. | Chin up.
     | It'll get better.
surprise: Yes, really. | It's true. | I was as surprised as you. | I know, it sounds strange. | I'm not joking.
     | I promise it's true.
""")
OPINIONS = (
    *("What do you think?", "How does that sound?", "How do you feel about that?", "What do you say to that?"),
    *("Can you imagine?", "What do you make of it?", "Any thoughts?"),
)
# The user's last turn brings the talk to its end.
ENDINGS = (
    *("I'll tell you more {soon}.", "I'm meeting {who} {soon}, so I'll hear more.", "Anyway, I have to go now."),
    *("So we'll know more {soon}.", "I'll call {who} about it {soon}.", "I'd better get back to {who}."),
    *("So that's my story about the {thing}.", "Let's talk about it again {soon}.", "I should see to the {thing} now."),
)

# What the assistant says, whatever the topic. A line under two emotions is ambiguous on purpose.
LEADS = _table("""
happiness surprise: No way! | Wow! | Oh my! | What news! | Really?
sadness fear: Oh no. | Oh dear. | My goodness.
anger disgust: Oh, come on! | Honestly! | Please, no. | Seriously?
fear surprise: Good heavens! | Wait, what was that?
neutral: I see. | All right. | Okay. | Yes. | Hm, let me think. | Well. | Sure. | Thanks for telling me.
     | Good to know. | I understand. | Fair enough. | Noted.
anger: That's outrageous! | How dare {he}! | Are you kidding me? | For heaven's sake! | That's enough! | Damn it!
     | How rude! | That's not fair! | What nonsense! | What a cheek! | I'm sick and tired of this!
disgust: Ugh! | Yuck! | Eww. | That's disgusting. | How gross! | That's revolting. | Oh, that's foul.
     | Stop, I'm eating! | Bah! | How vile! | Yikes, how nasty.
fear: Careful! | That scares me. | I'm getting nervous. | That sounds dangerous. | Oh God. | I don't like this. | Help!
     | That gives me the chills. | Watch out! | How frightening!
happiness: That's wonderful! | How lovely! | Great! | Hooray! | I'm so glad! | That's fantastic news! | Yes!
     | Brilliant! | Well done! | How nice! | Marvellous! | That's super!
sadness: I'm so sorry. | That's so sad. | What a pity. | Poor you. | That breaks my heart. | Sigh. | That hurts.
     | How sad. | That's a real shame. | Poor {who}. | Alas.
surprise: What? | You're joking! | I can't believe it! | Is that true? | Good grief! | Huh? | Unbelievable!
     | Since when? | Hold on, what? | Well, I never! | Goodness, really?
""")
BODIES = _table("""
happiness surprise: So {who} really did it! | I can hardly believe it, the {thing}!
     | {who} and a {thing}, who would have thought!
sadness fear: That sounds serious. | I keep thinking about the {thing}. | I had a bad feeling about the {thing}.
     | I just hope {who} is all right.
anger disgust: That {thing} is the worst. | I want nothing to do with that {thing}.
     | How can {who} put up with that {thing}? | I've had it with that {thing}.
anger surprise: Why did nobody tell me about the {thing}?
anger sadness: It's always the same with {who}. | I thought better of {who}.
fear disgust: Get that {thing} out of here. | I don't even want to think about the {thing}.
neutral sadness: I remember another {thing} from years ago. | {who} hasn't said much to me.
neutral surprise: I didn't know about the {thing}. | {who} never told me about a {thing}.
neutral happiness: That fits well with what {who} told me.
neutral: {who} told me a little about the {thing}. | I think {who} knows more about the {thing}.
     | It depends on the {thing}. | You can ask {who} about it. | I'll make a note about the {thing}.
     | We can talk about the {thing} {soon}. | I'll be around {soon} if you need anything.
     | A {thing} like that is quite common. | Let me know what {who} says about it.
     | I've read something about that kind of {thing}.
anger: I'm furious about the {thing}. | {who} had no right to do that. | I'm so fed up with the {thing}.
     | Why does {who} never ask anyone first? | {who} owes you an apology. | I'd have shouted at {who}.
     | That {thing} makes me so angry. | I'm losing my patience with {who}. | Stop making excuses for {who}.
     | I've told {who} a hundred times not to do that. | {who} only thinks of {self}.
     | I'm going to complain about the {thing}. | {who} must be out of {his} mind.
     | I hate it when {who} acts like that.
disgust: The thought of the {thing} turns my stomach. | I feel sick just thinking about the {thing}.
     | I wouldn't touch that {thing} with gloves on. | Keep that {thing} away from me. | It makes my skin crawl.
     | There's something nasty about that {thing}. | I need to wash my hands after hearing that.
     | {who} has such bad taste. | I can't bear the sight of that {thing}. | Please spare me the dirty details.
     | It's too gross for words. | I lost my appetite when you said {thing}. | Even the word {thing} makes me gag.
fear: I'm worried about {who}. | What if something bad happens to {who}? | That {thing} frightens me.
     | I'm afraid the {thing} will end badly. | My hands are shaking. | I won't sleep tonight.
     | I'm scared for you and {who}. | What if the {thing} goes wrong? | Please tell {who} to be careful.
     | I get nervous when I think of the {thing}. | I'd be too scared for a {thing}.
     | I'm terrified of anything like that {thing}. | I dread the day you say it went wrong.
happiness: I'm so happy about the {thing}. | I'm really glad for you and {who}. | That {thing} puts a smile on my face.
     | Give {who} a big hug from me. | I'm so proud of {who}. | Let's celebrate the {thing} together.
     | This is the best news of the week. | {who} must be delighted. | You just made my day.
     | I can't wait to hear more about the {thing}. | I love how {who} always thinks of you.
     | You and {who} really deserve it. | I could hug you and {who} both. | That {thing} sounds like pure joy.
sadness: I'm so sorry about the {thing}. | I feel sorry for {who}. | The {thing} makes me want to cry.
     | It reminds me of someone I lost. | I wish I could be there for you and {who}. | {who} and I don't talk any more.
     | Nothing will be the same after this {thing}. | I miss the old days with {who}.
     | I feel so lonely when I hear that. | It hurts to hear about the {thing}. | I'm close to tears.
     | I wish things were different for {who}. | My eyes fill up when you mention {who}.
     | I feel empty when I think of the {thing}.
surprise: I didn't expect the {thing} at all. | Since when does {who} do things like that?
     | I had no idea about the {thing}. | You're telling me {who} did that? | I would never have guessed it.
     | {who} of all people! | I thought {who} was joking. | That's the last thing I expected from {who}.
     | Did you say {thing}? | You caught me off guard with that {thing}. | How did {who} keep that a secret?
     | I have to sit down after that {thing}. | I'm stunned by the {thing}.
""")
CLOSES = _table("""
happiness surprise: Tell me everything! | What a day!
sadness fear: I don't know what to say. | I hope it gets better.
anger disgust: I don't want to hear any more. | Somebody has to stop that. | Never again.
neutral happiness: That's good to hear. | Say hello to {who}. | I'd like to see that.
neutral fear: Let me know how it goes.
neutral: Is that all right with you? | That's what I would do. | Keep me posted. | Either way is fine with me.
     | We can check that later. | It shouldn't take long. | Let's see. | Just tell me when. | I'll have a look.
     | That's all I know.
anger: I won't let that pass. | That has to stop now! | I'm so mad! | Tell {who} to leave me alone!
     | It drives me up the wall! | I won't forgive that. | Somebody should pay for this! | I want an answer now!
     | Who do they think we are? | I've had enough of this! | I'm seeing red!
disgust: I feel like throwing up. | That's so gross. | Take it away! | I need fresh air. | Please open a window.
     | I can't even look. | It's filthy. | How can anyone like that? | That really stinks. | I'm going to be ill.
     | It's enough to make you gag.
fear: Please be careful! | I'm so afraid. | I'm really scared now. | Promise me you'll be safe.
     | Lock the door, please. | Don't go alone. | Anything could happen. | My heart is beating so fast.
     | I have goosebumps. | What are we going to do? | I'm trembling.
happiness: I'm so happy for you! | I can't wait! | That makes me smile. | Congratulations! | I love it!
     | Let's have a party! | You've earned it! | That's the best! | I'm so excited! | Life is good! | I could dance!
sadness: I feel terrible about it. | I could cry. | I miss those times. | It's such a loss.
     | I'm here if you want to talk. | It makes me feel so alone. | I wish I could help. | My heart goes out to you.
     | I'm a bit down now. | Some days are hard. | I shed a tear.
surprise: I never saw that coming! | I'm speechless! | Are you sure? | That's incredible! | Who would have guessed?
     | I don't believe my ears! | Say that again! | How is that possible? | That's amazing! | Are you pulling my leg?
     | I'm lost for words!
""")

# One block a topic. `who` is name/pronoun, where a lower-case name becomes "my ..." or "your ..."; each of the `news`
# has the thing and the person; `ask` is a neutral question of the assistant and the user's answer; a label's line
# holds reactions in that emotion, and those without "you" serve the user too.
TOPICS = {
    name: _table(text)
    for name, text in {
        "pets": """
thing: dog | kitten | rabbit | parrot | puppy | hamster | cat | goat
who: sister/she | brother/he | Anna/she | uncle/he | daughter/she | Felix/he
place: in the kitchen | under my bed | in the garden | on the sofa | in the hall
news: {who} brought home a {thing} {when}. | {who} and I found a {thing} {place} {when}.
     | {who} gave me a {thing} for my birthday. | I'm looking after a {thing} for {who}.
     | {who} picked up a {thing} {when}. | There has been a {thing} {place} since {who} moved in.
more: The {thing} slept {place} all night. | The {thing} only eats when {who} is near.
     | {who} wants to call it Biscuit. | It has already broken two cups. | {who} spends hours with the {thing}.
     | We take the {thing} to the vet {soon}.
ask: How old is the {thing}? > About six months, we think. | Who feeds the {thing}? > {who} does, most days.
     | Where does the {thing} sleep? > Somewhere {place}. | Does the {thing} have a name? > Not yet, we have a list.
neutral: A {thing} needs fresh water every day. | The vet on our street is open on Saturdays.
     | A {thing} takes a lot of time. | You can get food for the {thing} at the market.
     | The {thing} should see a vet once a year.
happiness: A {thing} is such good company! | I want to play with the {thing} all day!
     | The {thing} will bring you so much joy! | I already love that sweet little {thing}!
     | I'll bring a toy for the {thing}!
anger: Nobody thinks about who cleans up after the {thing}! | {who} can't just drop a {thing} on you!
     | If that {thing} ruins my shoes again, I'll scream! | {who} treats that poor {thing} so badly!
disgust: The whole place must smell of wet {thing}. | I found hair from a {thing} in my soup once.
     | A {thing} licks everything, even your mouth. | Don't let the {thing} near the food, it has fleas.
fear: A {thing} bit me when I was small. | What if the {thing} runs into the road?
     | What if the {thing} has some disease? | I'm afraid the {thing} might hurt the baby.
sadness: My old {thing} died last winter. | I still miss the {thing} I had as a child.
     | That {thing} must feel so lost. | The poor {thing} has no home of its own.
surprise: I thought {who} was allergic to every {thing}! | A {thing}, in your tiny flat?
     | You always said you'd never have a {thing}! | Where on earth did a {thing} come from?
""",
        "food": """
thing: soup | curry | fish pie | omelette | apple cake | stew | pizza | onion tart | salad
who: mother/she | flatmate/he | Tom/he | grandmother/she | aunt/she | cousin/he
place: in the kitchen | at the new cafe | on the balcony | at the table | at the corner bar
news: {who} made a {thing} {when}. | {who} and I tried the {thing} {place} {when}.
     | {who} gave me the recipe for a {thing}. | {who} and I are making a {thing} {soon}.
     | {who} ordered a {thing} {place} {when}. | {who} and I have some {thing} left.
more: {who} put garlic in the {thing}. | The {thing} took three hours. | {who} ate most of the {thing} {place}.
     | We had bread with the {thing}. | {who} wants to cook a {thing} for everyone {soon}.
     | It's an old recipe with lots of pepper.
ask: What is in the {thing}? > Mostly onions and cheese. | How long did the {thing} cook? > Almost three hours.
     | Who else had some {thing}? > Just {who} and I. | Did you eat it {place}? > Yes, all of it.
neutral: A {thing} is best with a little salt. | I usually have a {thing} on Fridays.
     | You can keep the {thing} in the fridge. | The {thing} needs about half an hour.
     | I'll bring the plates and the bread.
happiness: A warm {thing} is my favourite meal! | Save me a big plate of {thing}! | {who} is the best cook I know!
     | It smells delicious, I love a good {thing}! | My mouth is watering already, lovely!
anger: {who} ate my {thing} and said nothing! | They charged me twice for a cold {thing}!
     | {who} left all the dirty plates to me! | That {thing} was mine, how selfish!
disgust: There was a hair in my last {thing}. | The {thing} smelled like old socks. | That {thing} is slimy and grey.
     | I saw mould on the {thing}.
fear: What if the {thing} makes us ill? | I'm allergic to nuts, a {thing} could kill me!
     | I'm scared the {thing} has gone bad. | I wouldn't dare to eat that {thing}.
sadness: My grandfather used to make me a {thing}. | I eat my {thing} alone these days.
     | The {thing} doesn't taste of anything since she left. | Our little cafe with the good {thing} has closed.
surprise: {who} can cook? | I thought {who} couldn't even boil an egg! | {who} knows what a {thing} is?
     | A {thing} for breakfast?
""",
        "travel": """
thing: cabin | boat trip | hotel room | tent | walking tour | holiday flat | camper van | balloon ride
who: husband/he | wife/she | friend Lucy/she | cousin/he | brother/he | friend Omar/he
place: by the sea | near the lake | in Spain | on the coast | on an island | in Norway
news: {who} booked a {thing} {place} {when}. | {who} and I have a {thing} {place}, we leave {soon}.
     | {who} won a {thing} {place}. | {who} changed our holiday to a {thing} {place}.
     | I'm packing, {who} and I have a {thing} {place}. | {who} found a cheap {thing} {place}.
more: We leave {soon}, very early. | {who} has never seen such a place. | The {thing} is only for three days.
     | {who} paid for the {thing} already. | My suitcase is too small for all this.
     | It is a long drive, and {who} can't read a map.
ask: When do you leave? > We leave {soon}. | How long will you stay? > Just a few days.
     | Who comes along? > Only {who}, I think. | How far is it? > About four hours by car.
neutral: The road there takes four hours. | You should print the paper for the {thing}. | Take a map and a warm jacket.
     | The {thing} is usually cheaper in autumn. | Check your papers before you leave.
happiness: A {thing} {place} is a dream! | You'll have the time of your life! | Sun, sea and a {thing}, how perfect!
     | I'm already smiling about your trip! | Send me lots of happy pictures!
anger: {who} booked the {thing} without asking you! | They never gave me my money back for a {thing}!
     | Our flight was late again and no one said sorry! | They lied about the {thing} on that website!
disgust: The beds there are full of bugs. | My last {thing} smelled of old fish. | The toilets {place} were filthy.
     | There were cockroaches in the shower.
fear: What if you get lost {place}? | I'm afraid of flying, it makes me dizzy.
     | There are thieves {place}, watch your bag! | A {thing} in a storm is my nightmare.
sadness: I was {place} with my father before he died. | I'll miss you while you are gone.
     | I haven't had a holiday in years. | Everyone travels, and I sit here alone.
surprise: You're going {place} {soon}? | {who} hates to travel! | A {thing} for that little money?
     | I thought you were staying home this year!
""",
        "work": """
thing: report | project | contract | schedule | presentation | budget | survey | sales plan
who: boss/she | manager/he | colleague/she | Mr Brown/he | assistant/he | Mrs Lane/she
place: at the office | in the meeting | on the second floor | at the front desk | in the canteen
news: {who} gave me a new {thing} {when}. | {who} changed the {thing} {when}.
     | {who} spoke about the {thing} {place} {when}. | {who} moved the {thing} to another week.
     | {who} wants me to lead the {thing}. | I finished the {thing} with {who} {when}.
more: {who} wants to talk about the {thing} {soon}. | I heard it from {who} {place}.
     | The team meets about the {thing} {soon}. | {who} has the key to the files.
     | I stayed until nine for the {thing}. | Half of the team is on leave.
ask: When is the {thing} due? > I think {soon}. | Who works on the {thing} with you? > Only {who} and I.
     | Did {who} send an email? > Yes, a short one. | Where is the {thing} now? > On a desk {place}.
neutral: I can send you the file {soon}. | The {thing} starts at nine. | Please put the {thing} on my desk.
     | We have a meeting about it {soon}. | The printer is on the third floor.
happiness: You'll do great with the {thing}! | You worked so hard, enjoy it! | I'm proud of you, what a success!
     | We should toast to the {thing} after work! | Finally {who} sees how good you are!
anger: {who} takes all the credit for your work! | I'm not working late for that stupid {thing} again!
     | {who} yelled at me about the {thing}! | They treat us like machines!
disgust: Somebody left a rotting lunch {place}. | {who} never washes {his} cup.
     | The way {who} flatters people is sickening. | The coffee there tastes like dirt.
fear: I'm afraid we'll lose our jobs. | What if {who} fires me over the {thing}? | I panic before every {thing}.
     | I dread talking to {who} about it.
sadness: I miss our old team so much. | I worked on it for months, all for nothing.
     | Nobody says goodbye when you leave that place. | I feel useless at work lately.
surprise: {who} said something nice for once? | The {thing} is done already? | I thought the {thing} was cancelled!
     | You got the {thing} and not {who}?
""",
        "school": """
thing: exam | essay | maths test | history project | spelling test | biology exam | oral exam | science project
who: teacher/she | son/he | daughter/she | classmate/he | Emma/she | professor/he
place: in room five | in the library | in the gym | at school | in the schoolyard
news: {who} told us about the {thing} {when}. | {who} and I have the {thing} {soon}.
     | {who} got the results of the {thing} {when}. | {who} and I did the {thing} {place} {when}.
     | {who} asked me to help with the {thing}. | {who} moved the {thing} to another day.
more: {who} spoke about the {thing} {place}. | The whole class talks about the {thing}.
     | I wrote six pages for the {thing}. | {who} will give out the marks {soon}. | Only half of us were {place}.
     | {who} hardly opened a book.
ask: Which chapter is it about? > Chapter four and five. | How long does the {thing} take? > About two hours.
     | When is the {thing}? > I think {soon}. | Did you study with {who}? > We met {place}.
neutral: The {thing} counts for a third of the mark. | You can study {place}.
     | Bring a pen and some paper for the {thing}. | I have notes from last year. | {who} posts the list {soon}.
happiness: You'll shine at the {thing}! | Good marks make me so proud! | {who} must be so proud of you!
     | I loved every minute of my own {thing}! | Let's get ice cream after the {thing}!
anger: {who} gives the worst marks to everyone! | It's so unfair to set the {thing} that early!
     | {who} copied my whole {thing}! | They blame us for everything at that school!
disgust: Somebody stuck gum under my desk. | The toilets at school are filthy. | The lunch {place} looked like vomit.
     | There was a dead mouse {place}.
fear: I'm terrified of failing the {thing}. | What if I forget everything? | I shake before every {thing}.
     | I'm scared {who} will call on me.
sadness: I failed the {thing} and cried all night. | I have no friends in that class. | I miss my old school.
     | {who} looked so unhappy after the {thing}.
surprise: {who} cares about a {thing}? | The {thing} is that soon? | I thought {who} never studied!
     | {who} knew about the {thing} all along?
""",
        "neighbours": """
thing: drum kit | fence | trampoline | hot tub | shed | leaf blower | electric guitar | garden gnome
who: neighbour/he | landlady/she | Mrs Gray/she | Mr Hill/he | neighbour Ivy/she
place: next door | upstairs | behind the house | across the street | by the stairs
news: {who} bought a {thing} {when}. | {who} has a new {thing} {place}. | {who} put a {thing} {place}.
     | {who} asked to borrow my {thing}. | I saw {who} with a {thing} {when}. | {who} is giving away a {thing}.
more: I can see the {thing} from my window. | {who} uses it every evening. | The whole street talks about the {thing}.
     | {who} has invited us {soon}. | {who} wants a second {thing}. | It stands right {place}.
ask: Is the {thing} new? > It looks quite old. | Have you talked to {who}? > Only for a minute.
     | Where is it exactly? > Right {place}. | Does {who} live alone? > I think so.
neutral: The house rules say quiet after ten. | I see {who} about twice a week. | You could knock on the door {place}.
     | {who} has lived there for years. | I'd put a note in the letter box.
happiness: {who} is such a lovely person! | I want to try the {thing} too! | It's so nice to have kind people {place}!
     | Our street is such a happy place! | Let's bake {who} a cake!
anger: {who} makes noise all night long! | I'll call the police about that {thing}!
     | {who} blocks the stairs every single day! | That {thing} is on my side, move it!
disgust: {who} leaves stinking rubbish {place}. | There are rats {place}. | {who} spits out of the window.
     | The {thing} is covered in bird droppings.
fear: I heard strange steps {place} at night. | {who} gives me the creeps. | I'm afraid {who} is watching us.
     | What if that {thing} falls on somebody?
sadness: {who} lost {his} best friend this year. | Nobody ever visits {who}.
     | The family {place} moved away, I miss them. | That house feels so empty now.
surprise: {who} has a {thing}? | I thought {who} hated noise! | There's really a {thing} {place}?
     | {who} spoke to you, after all these years?
""",
        "weather": """
thing: storm | heatwave | snowfall | thunderstorm | cold spell | hailstorm | foggy week | ice storm
who: father/he | aunt/she | friend Ben/he | niece/she | grandfather/he | friend Rosa/she
place: up north | on the coast | in our town | in the valley | in the hills
news: {who} heard of a {thing} {place}. | {who} saw a {thing} {place} {when}. | {who} called about the {thing} {place}.
     | {who} says a {thing} is coming {soon}. | {who} was out in the {thing} {when}.
     | {who} and I sat through a {thing} {when}.
more: {who} stayed inside the whole day. | The trains were late because of the {thing}.
     | {who} took pictures of the sky. | The streets {place} are empty. | It should change {soon}.
     | {who} couldn't open the front door.
ask: How long did the {thing} last? > About an hour. | Is {who} at home? > Yes, since this morning.
     | Is it cold {place}? > It changes every day. | Did the power go out? > Only for a minute.
neutral: The sky should clear up {soon}. | I'd take an umbrella and boots. | Spring weather changes every day.
     | The report says ten degrees {soon}. | We often have a {thing} at this time of year.
happiness: I love watching a {thing} from my window! | Hot tea and a {thing}, so cosy!
     | No school because of the {thing}, what fun! | The air is so fresh and sweet now!
     | The kids will dance in the puddles!
anger: The forecast was wrong again! | I'm soaked, and the bus drove right past me!
     | They closed the road and told nobody! | That {thing} ruined my whole day!
disgust: There's slimy mud all over the floor. | My wet socks stink. | The {thing} washed stinking dirt into my cellar.
     | Everybody on the bus was sweaty and smelly.
fear: I'm frightened of a {thing} like that. | What if the roof flies off? | A tree could fall on the house!
     | I hide under the blanket during a {thing}.
sadness: Grey days make me so gloomy. | The {thing} killed all my flowers. | Our old tree is gone, I could weep.
     | A {thing} like that took my uncle's farm.
surprise: A {thing}, at this time of year? | But the sun was out a minute ago! | I never heard a word about a {thing}!
     | In all my life I never knew a {thing} {place}!
""",
        "shopping": """
thing: coat | lamp | sofa | handbag | armchair | mirror | carpet | evening dress | wardrobe
who: sister/she | husband/he | friend Carla/she | aunt/she | roommate/he | friend Leo/he
place: in the new mall | at the flea market | in the window | on the main street | at the sale
news: {who} bought a {thing} {place} {when}. | {who} and I saw a {thing} {place} {when}.
     | {who} sold me an old {thing}. | {who} wants to take back the {thing}. | {who} ordered a {thing} {when}.
     | {who} gave me a {thing} from the sale.
more: The {thing} was half price. | {who} says the {thing} is too big. | I paid by card and kept the receipt.
     | {who} has the same {thing} in green. | They bring the {thing} {soon}. | I had to wait in a long line {place}.
ask: What colour is the {thing}? > Dark blue, I think. | How much was the {thing}? > Less than fifty.
     | Where did you see it? > Somewhere {place}. | Does {who} like it? > It's hard to say.
neutral: You can return the {thing} within two weeks. | The shop opens at ten. | I need a {thing} for the hall as well.
     | The same {thing} costs less online. | They have that in three sizes.
happiness: That {thing} is so beautiful! | You'll look wonderful! | What a bargain, lucky you!
     | A new {thing} always cheers me up! | I adore the colour!
anger: They cheated {who} with that {thing}! | The man in the shop was so rude to me!
     | I paid for a {thing} that broke in a day! | They refused to take the {thing} back!
disgust: That {thing} smells of sweat. | Somebody else wore it, how gross. | There's a sticky stain on the {thing}.
     | I found a dead moth in my {thing}.
fear: I'm afraid we can't pay for it. | What if someone steals the {thing}? | What if they used your card number?
     | Crowds {place} make me panic.
sadness: I had the same {thing} when my mother was alive. | I can't afford anything nice any more.
     | My favourite shop closed for good. | It was the last {thing}, and now it's gone.
surprise: You paid how much for a {thing}? | {who} bought something without you? | They gave it away for nothing?
     | I saw the very same {thing} this morning!
""",
        "health": """
thing: blood test | check-up | operation | eye test | vaccination | scan | allergy test | hearing test
who: grandmother/she | father/he | sister/she | uncle/he | friend Nora/she | grandson/he
place: at the clinic | at the hospital | in town | at the health centre | in ward three
news: {who} had a {thing} {place} {when}. | {who} has a {thing} {soon}. | The doctor wants {who} to have a {thing}.
     | {who} got the results of the {thing}. | I went with {who} to the {thing}.
     | They called {who} about the {thing} {when}.
more: The doctor {place} was young. | {who} had to wait for two hours. | We get the results {soon}.
     | {who} did not say much about it. | The nurse explained the {thing} to us.
     | {who} may not eat before the {thing}.
ask: When is the {thing}? > I think {soon}. | Who drives {who}? > I do, I have the car.
     | What did the doctor say? > Not much so far. | How long was the {thing}? > Only ten minutes.
neutral: A {thing} takes about ten minutes. | Bring your card to the desk. | You should drink water before the {thing}.
     | The office {place} opens at eight. | A nurse will call you {soon}.
happiness: I'm so relieved to hear about the {thing}! | {who} will be up and dancing in no time!
     | {who} is in the best of hands, how lovely! | The {thing} will go well, I'm full of hope!
     | I'm so thankful for good doctors!
anger: They let {who} wait for hours! | That doctor never listens to anyone! | They lost my papers again, idiots!
     | It's a scandal how they treat {who}!
disgust: I can't stand the sight of blood. | The smell {place} makes me gag. | There was pus on the bandage.
     | The bathroom {place} was never cleaned.
fear: I faint when I see a needle. | What if they find something? | I'm scared of every {thing}.
     | I'm so worried it could be serious.
sadness: {who} looked so weak and pale. | My mother never came home after her {thing}.
     | It hurts me to see {who} in pain. | I cried in the waiting room.
surprise: {who} went to a doctor? | {who} needs a {thing}? | But {who} is never ill!
     | A {thing}? I thought it was just a cold!
""",
        "garden": """
thing: rose bush | apple tree | pond | beehive | vegetable bed | compost heap | hedge | olive tree
who: grandfather/he | neighbour/she | mother/she | friend Paul/he | aunt/she
place: behind the house | by the gate | near the wall | in the front yard | next to the shed
news: {who} planted something near the {thing} {when}. | {who} made a {thing} {place}.
     | {who} and I planned a {thing} {place} {when}. | {who} wants to take out the {thing}.
     | {who} cut back the {thing} {when}. | I worked on the {thing} with {who} {when}.
more: The {thing} is right {place}. | {who} waters it every morning. | It looks quite different now.
     | {who} dug for hours. | We'll do the rest {soon}. | There are bees all around the {thing}.
ask: How big is the {thing}? > Two metres, more or less. | Who looks after it? > Mostly {who}.
     | Does it get enough sun? > Only in the morning. | Where is the {thing}? > Right {place}.
neutral: A {thing} needs sun and some shade. | I'd do that in early spring. | You can borrow my spade {soon}.
     | The soil {place} is quite dry. | A {thing} takes years of care.
happiness: I love sitting by the {thing} in summer! | Fresh fruit and birds singing, what a joy!
     | Your garden is a little paradise! | The {thing} looks gorgeous! | Nothing makes me happier than flowers!
anger: {who} cut down my plants without a word! | I told {who} to leave the {thing} alone!
     | Those kids trampled everything again! | {who} poured paint on my lawn!
disgust: There are fat slugs all over the {thing}. | The {thing} smells of rotten leaves. | I stepped on a slimy worm.
     | Maggots were crawling near the {thing}.
fear: I'm scared of the wasps near the {thing}. | What if a child falls in there? | I saw a snake by the {thing}!
     | I'm afraid it's poisonous.
sadness: My roses all died this year. | Grandma loved that {thing} so much. | The garden looks so dead and bare.
     | We buried our cat next to the {thing}.
surprise: {who} grew that? | It was only a tiny plant last year! | You did all of it in a day?
     | I never noticed a {thing} {place}!
""",
        "family": """
thing: wedding | birthday party | reunion | christening | engagement | anniversary | baby shower | family dinner
who: cousin/she | brother/he | aunt/she | uncle/he | mother/she | nephew/he
place: at the town hall | at home | in a big tent | at the old farm | on a boat
news: {who} is planning a {thing} {place}. | {who} told us about the {thing} {when}.
     | {who} had the {thing} {place} {when}. | {who} invited everyone to the {thing}. | {who} has the {thing} {soon}.
     | {who} won't come to the {thing}.
more: {who} has asked fifty people. | We need chairs {place}. | {who} wants to give a speech.
     | Half of the family lives far away. | {who} will sing at the {thing}. | We talk about the plans {soon}.
ask: Where is the {thing}? > It's {place}. | How many people are coming? > About fifty, I think.
     | What will you wear? > My blue suit. | Is {who} coming? > {who} says so.
neutral: I'll bring a salad to the {thing}. | The {thing} begins at four. | We could share a car {soon}.
     | I need to buy a card for the {thing}. | There's a train there every hour.
happiness: I love a big family {thing}! | {who} will be so happy, how sweet! | Let's dance all night at the {thing}!
     | What a beautiful reason to be together! | I'm crying happy tears!
anger: {who} always spoils the {thing}! | They invited everybody but me! | {who} started a fight again!
     | I'm done with {who} and all those lies!
disgust: {who} chews with an open mouth, how revolting. | Uncle Joe burps all through dinner.
     | All that kissing at a {thing} is gross. | The punch looked like dirty water.
fear: I'm afraid they will fight again. | I get so nervous before a {thing}. | What if {who} makes a scene?
     | I'm scared to face the whole family.
sadness: Dad won't be there for the {thing}. | There's one empty chair at every {thing}.
     | We were so close once, {who} and I. | I cried at the last {thing}.
surprise: {who} is planning a {thing}? | A {thing}, so soon? | I thought {who} hated parties!
     | Nobody told me about a {thing}!
""",
        "home": """
thing: flat | studio | attic room | house | basement flat | apartment | cottage | loft
who: landlord/he | flatmate/she | brother/he | friend Mia/she | landlady/she
place: near the station | in the old town | by the river | on the hill | above a bakery
news: {who} showed me a {thing} {place} {when}. | {who} is leaving the {thing} {soon}.
     | {who} and I signed for a {thing} {place}. | {who} raised the rent for the {thing}.
     | {who} and I looked at a {thing} {place} {when}. | {who} wants to sell the {thing}.
more: The {thing} has two windows and a small kitchen. | {who} wants an answer {soon}. | The rent is due {soon}.
     | {who} painted the walls green. | There are three locks on the door. | The {thing} has stood empty for a year.
ask: How big is the {thing}? > Forty square metres. | When would you move? > I think {soon}.
     | Is it quiet there? > Most of the time. | Have you read the contract? > Only the first page.
neutral: The deposit is two months of rent. | The {thing} is on the third floor.
     | You should read every page before you sign. | There's a bus stop {place}. | I can help you carry boxes {soon}.
happiness: Your own {thing}, how wonderful! | I love the view {place}! | Let's have a house party to celebrate!
     | It will be such a happy home! | You'll wake up smiling in that {thing}!
anger: {who} asks far too much for that {thing}! | {who} never fixes anything! | They kept my money, those crooks!
     | {who} walked in without knocking!
disgust: There's black mould in that {thing}. | The {thing} smells of old fish and smoke.
     | Bugs come out of the drain there. | The carpet was damp and greasy.
fear: What if we lose our home? | I'd be scared to live there alone. | They say there are break-ins all over town.
     | I hear noises at night and can't breathe.
sadness: I grew up in a {thing} like that, I miss it. | It's hard to leave a home you love.
     | My room felt so empty on the last day. | I have nowhere to go.
surprise: A {thing} {place}, for that rent? | {who} is moving out? | Is there really a free {thing} in this town?
     | I thought you would stay there forever!
""",
        "phone": """
thing: phone | tablet | laptop | smartwatch | headset | camera | e-reader | app
who: son/he | boss/she | friend Kim/she | grandmother/she | classmate/he
place: on the bus | in my bag | on the desk | at the repair shop | under a cushion
news: {who} got a new {thing} {when}. | {who} left my {thing} {place} {when}. | {who} borrowed my {thing} {when}.
     | {who} sold me an old {thing} {when}. | {who} found my {thing} {place} {when}.
     | {who} dropped the {thing} {place}.
more: The screen of the {thing} is black. | {who} knows all my passwords. | I found out {place}.
     | {who} looks at the {thing} all day. | The shop will check the {thing} {soon}. | There were forty new messages.
ask: Does the {thing} still work? > More or less. | Where was it? > It was {place}.
     | How old is your {thing}? > Two years, I think. | Did you call {who}? > Not yet.
neutral: Try to charge the {thing} overnight. | You can turn off the sound. | The {thing} needs an update.
     | I'd save a copy of the pictures. | The shop repairs a {thing} in two days.
happiness: I just love a new {thing}! | Now we can talk every day, how nice! | Your message made me laugh so much!
     | The pictures are so pretty! | A good {thing} is pure fun!
anger: {who} reads my messages, I hate that! | The thing breaks down every single day! | {who} never calls me back!
     | They put me on hold for an hour!
disgust: The {thing} was sticky and full of crumbs. | Somebody sneezed all over it. | I dropped mine in a dirty toilet.
     | {who} picks {his} nose on video calls.
fear: Somebody might be spying on you! | I'm afraid a thief has my data. | Calls at midnight scare me to death.
     | What if they know where you live?
sadness: All the pictures of my mother were on it. | Nobody ever calls me. | I read her last message again and again.
     | I lost every photo of my dog.
surprise: {who} uses a {thing}? | Wait, {who} knows how to use that? | You mean the very same {thing}?
     | I thought {who} hated every new {thing}!
""",
        "sports": """
thing: match | race | final | bike race | tournament | swimming contest | marathon | ice hockey game
who: brother/he | coach/she | friend Max/he | daughter/she | team mate/he | trainer/he
place: in the stadium | at the pool | in the park | on the track | at the club
news: {who} took part in the {thing} {when}. | {who} and I watched the {thing} {place} {when}.
     | {who} wants to run in the {thing}. | {who} has the {thing} {place} {soon}.
     | {who} put me on the team for the {thing}. | {who} left the {thing} early.
more: {who} trained for months. | It was all over in the last minute. | The next {thing} is {soon}.
     | There were hundreds of people {place}. | {who} wore my old shoes. | The other team came from the north.
ask: How long is the {thing}? > About ninety minutes. | Did you play too? > Only in the second half.
     | What was the score? > Two to one. | Who was there? > {who} and half the town.
neutral: The {thing} starts at three. | You should warm up first. | The club meets twice a week.
     | Take a bottle of water along. | Tickets for the {thing} are sold {place}.
happiness: Sport makes me feel so alive! | I cheered until I had no voice! | I love every second of a {thing}!
     | {who} is a champion! | Gold for {who}, how amazing!
anger: That referee must be blind! | They cheated in the {thing}, I swear! | {who} kicked me on purpose!
     | {who} never passes the ball, selfish!
disgust: The changing room stinks of feet. | Somebody spat in the pool. | His shirt was dripping with smelly sweat.
     | There was hair in the shower drain.
fear: What if {who} breaks a leg? | I can't watch, it's too dangerous! | I get so nervous before a {thing}.
     | I'm afraid my heart won't take it.
sadness: My team lost every game this year. | I can't play any more since my accident. | {who} sat alone and wept.
     | That was the saddest {thing} I ever saw.
surprise: {who} does sports now? | I had no clue {who} was so fit! | I thought {who} hated sport!
     | There's a {thing} in our town?
""",
        "transport": """
thing: bus | tram | train | night bus | ferry | express train | minibus | airport bus
who: colleague/she | Sam/he | mother/she | friend Lena/she | brother/he | Mr Webb/he
place: at the station | near the bridge | at the last stop | on platform two | in the tunnel
news: The {thing} stopped {place}, and {who} got off. | {who} took the wrong {thing} {when}.
     | I met {who} on the {thing} {when}. | {who} fell asleep on the {thing} {when}.
     | {who} left a bag on the {thing} {when}. | {who} missed the last {thing} {when}.
more: We stood {place} for an hour. | {who} sat next to a singer. | There is another {thing} {soon}.
     | The driver said nothing. | {who} had no ticket. | The {thing} was full of people.
ask: What time was the {thing}? > Shortly after eight. | How did you get home? > I walked with {who}.
     | Is the ticket still good? > Until the end of the month. | Where did you get off? > Right {place}.
neutral: The next {thing} leaves at ten past nine. | You can buy a ticket {place}. | I take the {thing} to work.
     | The {thing} runs every hour. | Line four also stops {place}.
happiness: I love the view from the {thing}! | A {thing} ride always cheers me up! | I met my best friend on a {thing}!
     | No traffic and a window seat, perfect! | I hum all the way on the {thing}!
anger: The {thing} is late every single day! | The driver shut the door in my face!
     | They raised the prices again, thieves! | Some idiot pushed {who}!
disgust: Somebody was sick on the {thing}. | The seats are sticky and stained. | That man stank of beer.
     | I touched old gum under the seat.
fear: I'm scared on the {thing} at night. | A man followed me {place}. | What if the brakes fail?
     | I get panic in a full {thing}.
sadness: I said goodbye to her {place}. | I missed the {thing} and his last hours.
     | Everyone on the {thing} looks so lonely. | I cried on the {thing} home.
surprise: Is there a {thing} at that hour? | I never thought {who} would ride a {thing}!
     | They really have a {thing} there? | {who} without a car?
""",
        "movies": """
thing: film | comedy | thriller | documentary | horror film | musical | cartoon | action film | love story
who: girlfriend/she | boyfriend/he | friend Rita/she | uncle/he | daughter/she | cousin Ned/he
place: at the cinema | on television | at the open air theatre | at home | in the small hall
news: {who} and I saw a {thing} {place} {when}. | {who} chose a {thing} for tonight.
     | {who} wants to see a {thing} {place} {soon}. | {who} has a small part in a {thing}.
     | {who} left the {thing} after ten minutes. | {who} told me the end of the {thing}.
more: The {thing} was three hours long. | {who} talked all the way through. | It is about a man on a boat.
     | {who} wants to see the {thing} again {soon}. | The hall was almost empty. | The main part is played by a child.
ask: What is the {thing} about? > A man on a boat. | Who plays in it? > Nobody I know.
     | How long is the {thing}? > Three hours. | Where did you see it? > We saw it {place}.
neutral: The {thing} starts at eight. | I can get the tickets online. | I usually sit in the middle row.
     | The {thing} is based on a book. | They show it again {soon}.
happiness: I laughed so hard at that {thing}! | Popcorn and a {thing}, I'm in heaven! | It's my favourite {thing} ever!
     | The end was so sweet! | I'm singing the songs all day!
anger: {who} always spoils the end! | They ruined a great book with that {thing}!
     | People talked through the whole {thing}! | I want my money back for that {thing}!
disgust: There was so much blood and slime in that {thing}. | The kissing scene was gross.
     | My seat was sticky with old cola. | They ate worms in that {thing}.
fear: I had nightmares after that {thing}. | I watched the {thing} through my fingers.
     | I can't go down to the cellar now. | That scene in the dark haunts me.
sadness: I cried when the dog died in the end. | The {thing} was our last evening together.
     | That {thing} left me in tears. | The old cinema closes for good.
surprise: {who} liked a {thing}? | They made that book into a {thing}? | That {thing} won a prize?
     | Since when is {who} into a {thing}?
""",
        "music": """
thing: concert | festival | opera night | choir show | open air gig | piano evening | talent show | jazz night
who: sister/she | band leader/he | friend Jo/she | neighbour/he | teacher/she
place: in the park | at the town hall | in the church | in the little bar | in the music hall
news: {who} asked me to sing in the {thing} {soon}. | I heard {who} at the {thing} {place}.
     | {who} took me to a {thing} {when}. | {who} wrote a piece for the {thing}.
     | {who} wants me to join the {thing} {place}. | {who} played a wrong note at the {thing}.
more: {who} practised for weeks. | We were {place} until midnight. | {who} wants to do it again {soon}.
     | The sound {place} was loud. | {who} broke a string in the first minute. | Only nine people clapped.
ask: What instrument does {who} play? > The violin, I think. | How long was the {thing}? > Almost two hours.
     | Were there many people? > About ninety. | When is the next {thing}? > It is {soon}.
neutral: The {thing} begins at seven. | You need a ticket for the {thing}. | {who} plays every Thursday.
     | They play at the {thing} until ten. | The door is open from six.
happiness: A {thing} makes me want to dance! | I'd sing along with joy! | Music and friends, what could be better!
     | {who} has a voice like an angel! | I'll hum all the way to the {thing}!
anger: {who} was paid and never turned up! | They called off the {thing} for no reason!
     | {who} stole that song from me! | They were late by two hours, what an insult!
disgust: Somebody threw up {place}. | The toilets at that {thing} were vile. | It sounded like a sick cow.
     | The beer was warm and smelled of feet.
fear: I'd die of fear on that stage. | The crowd {place} nearly crushed me. | My knees shake before a {thing}.
     | What if I forget the words?
sadness: They played our song, and I cried. | The singer I loved is dead. | That {thing} reminds me of my lost brother.
     | I sold my guitar, it hurts.
surprise: {who} can sing? | {who} likes that kind of {thing}? | There's really a {thing} {place}?
     | You and {who} make music together?
""",
        "car": """
thing: car | van | scooter | motorbike | bike | old truck | electric car | sports car
who: father/he | sister/she | friend Dan/he | wife/she | mechanic/she
place: in the garage | on the motorway | in front of the house | near the petrol station | in a ditch
news: {who} bought a {thing} {when}. | {who} left the {thing} {place} {when}. | {who} drove the {thing} home {when}.
     | {who} wants to sell me a {thing}. | {who} painted my {thing} pink {when}.
     | {who} and I got stuck {place} with the {thing}.
more: {who} drives much too fast. | The {thing} makes a strange sound. | {who} had to push it {place}.
     | It needs a new wheel. | {who} takes the driving test {soon}. | The {thing} is older than I am.
ask: How old is the {thing}? > Older than I am. | Who was driving? > It was {who}.
     | Is the {thing} still {place}? > It hasn't moved. | What does a repair cost? > We hear that {soon}.
neutral: I'd check the oil and the lights. | A {thing} needs a service every year. | The garage opens at eight.
     | You can park the {thing} {place}. | I have a spare key at home.
happiness: Let's go for a ride with the {thing}! | Wind in my hair, I love it!
     | A shiny {thing}, I'm so pleased for {who}! | Finally free to go anywhere, wonderful! | That {thing} is a beauty!
anger: Somebody scratched my {thing} and drove off! | {who} parks like an idiot! | They gave me a fine for nothing!
     | {who} cut me off, I was raging!
disgust: The {thing} stinks of old cheese. | There's a dead bird under the {thing}. | {who} left rotten fruit in there.
     | The seats are greasy, I won't sit down.
fear: What if the brakes don't work? | I'm scared when {who} drives. | I can't drive at night, I panic.
     | A crash like that could kill {who}!
sadness: I had to sell my first {thing}, I still miss it. | My friend died in a {thing} like that.
     | We made our last trip in that {thing}. | That poor old {thing} was like family.
surprise: {who} has a licence? | I never pictured {who} near a {thing}! | There's still a {thing} in your family?
     | You let {who} drive the {thing}?
""",
        "chores": """
thing: fridge | oven | washing machine | cellar | attic | sink | rubbish bin | ice box
who: roommate/he | wife/she | son/he | flatmate Zoe/she | grandmother/she
place: in the corner | behind the door | in the kitchen | down there | at the bottom
news: {who} opened the {thing} {when}. | I cleaned the {thing} with {who} {when}.
     | {who} found an old box {place}, by the {thing}. | {who} asked me to see to the {thing}.
     | {who} heard something {place}, near the {thing}. | {who} forgot about the {thing} {when}.
more: Nobody has touched the {thing} for a year. | There was a strange sound {place}. | {who} found a ring {place}.
     | {who} went to get a torch. | A man will look at the {thing} {soon}. | {who} threw out nine bags.
ask: When was the {thing} last cleaned? > Last year, I think. | What did {who} find? > Just an old box.
     | Is there water on the floor? > A little. | Who does the cleaning? > {who} and I take turns.
neutral: I do the {thing} once a month. | Use hot water and some soap. | The cloth for the {thing} is {place}.
     | Leave the {thing} open for an hour. | We can make a plan for who cleans what.
happiness: The {thing} shines like new, lovely! | A clean home makes me so happy! | Cleaning day is my favourite day!
     | {who} helped, what a sweetheart! | Everything sparkles, I could sing!
anger: {who} never lifts a finger! | I'm not your maid! | It's always me who cleans the {thing}!
     | {who} left that mess on purpose!
disgust: Something green is growing in the {thing}. | The smell from the {thing} makes me retch.
     | There are maggots {place}. | I put my hand in cold slime.
fear: There might be a rat in there! | I'm afraid of spiders {place}. | I won't go near the {thing} in the dark!
     | What if it catches fire?
sadness: I found grandpa's old letters {place}. | Her cup is still on the shelf, it hurts.
     | I threw away our old toys and cried. | The house is so silent without the kids.
surprise: {who} cleaned something? | {who} even knows where the {thing} is? | I thought the {thing} was brand new!
     | It's clean already?
""",
        "post": """
thing: parcel | letter | big box | invitation | birthday card | small packet | telegram | brown envelope
who: aunt/she | old friend Eva/she | godmother/she | cousin/he | postman/he | friend Hugo/he
place: on the mat | in the letter box | at the post office | on my desk | behind the plant
news: A {thing} from {who} came {when}. | {who} sent me a {thing} {when}.
     | {who} found a {thing} for me {place} {when}. | {who} asked about the {thing}. | {who} opened my {thing} {when}.
     | {who} gave me a {thing} without a name {when}.
more: The {thing} was {place} for days. | {who} wants an answer {soon}. | It came all the way from Peru.
     | There was no stamp on the {thing}. | {who} called me twice about it. | There was a photo with the {thing}.
ask: Where is the {thing} now? > Right {place}. | Have you opened it? > Only one side.
     | How big is the {thing}? > Just a bit bigger than my hand. | What is in the {thing}? > Some photos and a note.
neutral: The post office closes at six. | You should keep the {thing} in a safe place.
     | I get a {thing} about once a week. | You can answer the {thing} {soon}. | Put the date on the {thing}.
happiness: I love getting a {thing}! | A gift from {who}, how sweet! | Good things come by post, how exciting!
     | {who} is such a dear, bless {him}! | I jumped for joy when my {thing} came!
anger: {who} has no business with your {thing}! | They lost my {thing} for the third time!
     | It's a lie from start to end! | I tore up the {thing}, I was so mad!
disgust: The {thing} was wet and smelled of fish. | Something sticky ran out of the {thing}.
     | {who} licks every stamp with that wet tongue. | There was a dead beetle in the {thing}.
fear: It could be a trap, be careful with the {thing}! | I'm afraid of what the {thing} says.
     | Someone knows where we live! | Bad news always comes in a {thing}, I'm shaking!
sadness: It was the last {thing} she ever sent. | I wait for a {thing} that never comes.
     | I never wrote back, and now it's too late. | I keep her {thing} in a drawer and weep.
surprise: I thought {who} forgot all about you! | {who} still has your address? | A {thing} from {who}, really?
     | People still send a {thing} these days?
""",
    }.items()
}


@dataclass
class _Scene:
    """What one dialogue is about, and what was said of it so far."""

    rng: random.Random
    held_out: bool
    topic: dict[str, tuple[str, ...]]
    slots: dict[str, dict[str, str]] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)
    place_known: bool = False

    def __post_init__(self) -> None:
        slots = {key: self.pick(TIMES[key]) for key in ("when", "soon")}
        slots |= {key: self.pick(self.topic[key]) for key in ("thing", "place")}
        name, slots["he"] = self.pick(self.topic["who"]).split("/")
        slots |= PRONOUNS[slots["he"]]
        for role, mine in ((USER, "my "), (ASSISTANT, "your ")):
            self.slots[role] = slots | {"who": name if name[0].isupper() else mine + name}

    def pick(self, entries: Sequence[str], without: str | None = None) -> str:
        """An entry not used yet, if there is one; the last fifth of the entries is for validation and test only."""
        known = entries if self.held_out else entries[: len(entries) - max(1, len(entries) // 5)]
        fresh = [entry for entry in known if entry not in self.used and not (without and without in entry.lower())]
        entry = self.rng.choice(fresh or known)
        self.used.add(entry)
        return entry

    def say(self, role: str, frames: Sequence[str]) -> str:
        """The frames as one utterance: slots filled, `a` or `an`, capitals at the start of sentences."""
        text = " ".join(frames)
        self.place_known |= "{place}" in text
        text = re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", text.format_map(self.slots[role]))
        return re.sub(r"(^|[.!?] )([a-z])", lambda start: start[1] + start[2].upper(), text)


def _emotion(rng: random.Random, heard: Iterable[str]) -> str:
    """An emotion by WEIGHTS, leaning to those just heard."""
    weights = [weight * (ECHO if label != "neutral" and label in heard else 1) for label, weight in WEIGHTS.items()]
    return rng.choices(list(WEIGHTS), weights)[0]


def _mood(scene: _Scene, emotion: str) -> str:
    """How the user feels: a reaction to the topic, or a general one where only a listener would react so."""
    if emotion in ("neutral", "surprise") or scene.rng.random() < 0.4:
        return scene.pick(MOODS[emotion])
    return scene.pick(scene.topic[emotion], without="you")


def _opening(scene: _Scene, emotion: str) -> list[str]:
    """Frames of the user's first turn: the news, and how it feels before or after it."""
    news = scene.pick(scene.topic["news"])
    if scene.rng.random() < 0.5:
        return [scene.pick(OPENERS[emotion]), news]
    return [news] if emotion == "neutral" else [news, _mood(scene, emotion)]


def _user(scene: _Scene, emotion: str, heard: str, answer: str, last: bool) -> list[str]:
    """Frames of a user's later turn: an answer to the reply, then one more fact or an ending, with the user's mood."""
    frames = [answer] if answer else []
    if not answer and scene.rng.random() < 0.6 and (emotion == "neutral" or heard in ("neutral", "surprise")):
        frames.append(scene.pick(ANSWERS[heard]))
    mood = [] if emotion == "neutral" else [_mood(scene, emotion)]
    if last and scene.rng.random() < 0.5:
        return [*frames, *mood, scene.pick(ENDINGS)]
    if not mood and scene.rng.random() < 0.4:
        mood = [scene.pick(OPINIONS)]
    return [*frames, scene.pick(scene.topic["more"]), *mood]


def _reply(scene: _Scene, emotion: str, last: bool) -> list[str]:
    """Frames of an assistant's turn; a neutral one may be a question `question > answer`, but not at the end."""
    unsaid = None if scene.place_known else "{place}"
    if emotion == "neutral" and not last and scene.rng.random() < 0.3:
        return [scene.pick(scene.topic["ask"], unsaid)]
    bodies = scene.topic if scene.rng.random() < 0.65 else BODIES
    tables = {"lead": LEADS, "body": bodies, "close": CLOSES}
    shape = scene.rng.choices(list(SHAPES), list(SHAPES.values()))[0]
    return [scene.pick(tables[part][emotion], unsaid) for part in shape.split()]


def _turns(rng: random.Random, held_out: bool, taken: set[str]) -> tuple[Turn, ...]:
    """One dialogue of 4, 6 or 8 turns, none of whose replies is in `taken`."""
    scene = _Scene(rng, held_out, rng.choice(list(TOPICS.values())))
    length = rng.choice((4, 4, 6, 6, 8))
    emotion = _emotion(rng, ())
    turns = [Turn(USER, scene.say(USER, _opening(scene, emotion)), emotion)]
    answer = ""
    while len(turns) < length:
        last = len(turns) >= length - 2
        emotion = _emotion(rng, [turn.emotion for turn in turns[-2:]])
        if turns[-1].role == ASSISTANT:
            frames = _user(scene, emotion, turns[-1].emotion, answer, last)
            turns.append(Turn(USER, scene.say(USER, frames), emotion))
        else:
            *frames, end = _reply(scene, emotion, last)
            end, _, answer = end.partition(" > ")
            reply = scene.say(ASSISTANT, [*frames, end])
            if reply not in taken:
                turns.append(Turn(ASSISTANT, reply, emotion))
    return tuple(turns)


def dialogues(count: int, seed: int) -> dict[str, list[Dialogue]]:
    """`count` dialogues in splits of 80, 10 and 10 %; equal seeds give equal dialogues.

    4 to 8 turns (even), roles alternating from the user, labels of DAILY_DIALOG_LABELS. No two dialogues are equal, and
    no reply of four words or more is in two splits. InputError if `count` < 10: a split would be empty.
    """
    if count < 10:
        raise InputError(f"the embedded corpus needs a count of at least 10 (80, 10 and 10 %), got {count}")
    tenth = count // 10
    rng = random.Random(seed)
    splits: dict[str, list[Dialogue]] = {}
    seen: set[tuple[Turn, ...]] = set()
    taken: set[str] = set()
    for split, size in {"train": count - 2 * tenth, "validation": tenth, "test": tenth}.items():
        chosen: list[Dialogue] = []
        while len(chosen) < size:
            turns = _turns(rng, split != "train", taken)
            if turns not in seen:
                seen.add(turns)
                chosen.append(Dialogue(f"{split}-{len(chosen):05d}", turns))
        replies = (turn.content for dialogue in chosen for turn in dialogue.turns if turn.role == ASSISTANT)
        taken.update(reply for reply in replies if len(reply.split()) >= 4)
        splits[split] = chosen
    return splits


def ngram_overlap(train: Iterable[str], other: Iterable[str], n: int) -> float:
    """The share of the distinct word n-grams of `other` that are in `train` too; 0.0 where there are none."""

    def grams(texts: Iterable[str]) -> set[tuple[str, ...]]:
        words = (re.findall(r"[\w'-]+", text.lower()) for text in texts)
        return {tuple(w[i : i + n]) for w in words for i in range(len(w) - n + 1)}

    known, asked = grams(train), grams(other)
    return len(known & asked) / len(asked) if asked else 0.0
