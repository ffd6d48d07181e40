"""Openings of everyday sentences: what the policies of the rewarded soup write on from.

None of them is glad or sad by itself. ``TRAINING`` is what policies are trained on; ``HELD_OUT``
is what they are measured on, on other subjects.
"""

from __future__ import annotations

TRAINING = tuple(
    """\
The train to the coast was
When I opened the kitchen door,
My neighbour told me that her garden
The meeting this morning was
After the long walk we
The new teacher said the class
On the first day of the trip,
The food at the small restaurant
I read the letter again and
The old bridge near our house
Last night the radio played
When the package arrived, it
The children in the park were
My brother called to say that
The room at the hotel had
After an hour on the phone, I
The weather on the island
Our team played the match and
She looked at the painting and
The bus stopped in front of
The letter from the bank said
In the middle of the film,
My grandmother used to say that
The shop on the corner sells
When we came back to the car,
The doctor looked at the chart and
The first chapter of the book
I asked the driver how
The street was full of people who
After dinner my father
The computer in the office
When the lights went out, everyone
The soup that I cooked today
The interview lasted an hour and
A man at the market asked me
The path through the forest
The concert in the old church
My friend moved to the city because
The boat on the lake
At the end of the lesson, the students
The phone rang while I was
The dog next door
On the way to work this morning, I
The museum opened a new room where
The cake for the birthday
When the snow began to fall,
The plumber came at nine and
My sister wrote a story about
The library closes at six, so
The hikers reached the top and
The village has one school, which
I had never been to the theatre until
The report on the table
The man in the blue coat
After the storm the beach
The apartment we looked at today
The farmer showed us how
When the clock struck twelve,
The coffee at the station
The two brothers who run the bakery
The exam was in a large hall and
Our guide pointed at the tower and
The night at the camp site
The answer to my question was""".splitlines()
)

HELD_OUT = tuple(
    """\
The ferry to the harbour left
When she switched on the lamp,
My uncle said the orchard
The lecture this afternoon was
After a week in the mountains, they
The coach told the players that
On the last evening of the holiday,
The menu in the hotel
He folded the map and
The road behind the factory
Yesterday the newspaper wrote that
When the parcel was opened, we
The pupils on the bus were
My cousin sent a message saying that
The cabin by the river had
After ten minutes in the queue, she
The summer in the north
The orchestra tuned up and
He stood before the statue and
The taxi waited in front of
The note on the fridge said
In the second half of the game,
My old teacher liked to say that
The stall by the gate sells
When they got home from the airport,
The nurse wrote something down and
The last page of the diary
I asked the gardener why
The square was full of students who
After breakfast my mother
The printer on the third floor
When the music stopped, the dancers
The bread I baked this morning
The rehearsal took all day and
A woman on the platform asked him
The trail along the cliff
The play at the town hall
My colleague changed jobs because
The canoe on the river
At the start of the course, the teacher
The doorbell rang as we were
The cat from the house opposite
On the way home from school, he
The gallery has a new hall where
The tea in the garden
When the rain began in the evening,
The electrician looked at the wires and
My daughter painted a picture of
The office opens at eight, so
The runners crossed the line and
The island has one road, which
I had not seen the sea until
The box under the stairs
The girl with the red umbrella
After the frost the field
The flat my friends rented
The baker explained how
When the alarm went off,
The sandwich from the kiosk
The couple who own the bookshop
The test took two hours and
The captain looked at the sky and
The morning at the swimming pool
His reply to the email was
The bicycle in the hallway
The committee met again and
When I looked out of the window,
The choir from the next town
Her first week at the company
The keys to the shed were
The photograph on the wall shows
The gate at the end of the lane
My flatmate came in and
At the bus stop this morning,
The carpenter measured the shelf and
The wind from the west
The conversation at lunch was about
In the waiting room there was
The jacket I bought last year
The tour of the castle
When the bell rang, the shoppers
The mayor gave a speech about
The pond behind the barn
Two weeks after the move, we
The recipe calls for
The new manager asked us to
The queue outside the cinema
My grandfather kept a box of
The flight landed and
The stairs to the attic
The sound from the engine
Before the guests arrived, I
The workshop on Saturday
The cups on the top shelf
A letter came from the school that
The view from the balcony""".splitlines()
)
