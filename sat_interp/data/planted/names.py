"""Names of the people in the corpus of planted facts; none is a name in the built-in stories."""

from __future__ import annotations

_FIRST = """
Aaron Abel Ada Adela Agnes Albert Alec Alfred Alma Alvin Amanda Amos Andrew Angela Anita Arnold
Arthur Astrid Audrey Barbara Beatrice Becky Bernard Bertha Bessie Bianca Blanche Boris Brenda Brian
Bruce Bruno Calvin Camilla Carmen Carol Cecil Celia Chester Clarence Claude Clement Clifford Clyde
Colin Connie Conrad Cora Craig Curtis Cynthia Cyril Daphne Darren Deborah Denise Dennis Derek Diana
Dinah Dolores Donald Donna Doris Dorothy Douglas Duncan Dwight Earl Edgar Edith Edmund Edna Edwin
Eileen Elaine Eleanor Elias Elmer Elsa Elvira Enid Eric Ernest Esther Ethan Ethel Eugene Eunice Eva
Evelyn Fabian Felix Flora Florence Floyd Frances Francis Frank Freda Gavin Geoffrey Gerald Gilbert
Gina Gladys Glenn Gloria Gordon Graham Greta Gustav Gwen Hannah Harold Harriet Hazel Hector Heidi
Helga Herbert Herman Hilda Homer Horace Howard Hubert Hugh Hugo Ian Ida Igor Ingrid Irene Irma Isaac
Isabel Ivan Janet Jasper Jean Jeremy Jerome Jesse Joan Joanna Jonas Joseph Josephine Joyce Judith
Julian Juliet Karen Karl Katrina Keith Kenneth Kurt Laurence Leah Leila Lena Leon Leonard Leroy
Leslie Lester Lewis Lillian Lloyd Lois Lorraine Louis Louise Lucas Lydia Mabel Magnus Malcolm Marcia
Marcus Margaret Marian Marie Marion Marjorie Martha Martin Marvin Matilda Maureen Maurice Maxine
Melvin Mildred Milton Minnie Miriam Monica Morris Muriel Myra Nadia Nancy Naomi Nathan Nelly Nelson
Neville Nicholas Nigel Noel Nora Norman Olga Oliver Olivia Oscar Oswald Otto Owen Pamela Patrick
Paula Pauline Percy Perry Philip Phyllis Priscilla Quentin Ralph Ramona Randolph Raymond Rebecca
Regina Reginald Rex Rhoda Richard Rita Robert Roberta Roderick Rodney Roger Roland Ronald
"""

_LAST = """
Abbott Acton Alden Ambrose Appleby Ashby Atwood Bagley Balfour Bancroft Barlow Baxter Bellamy Benson
Bentley Blackwell Blythe Bolton Bradley Bramwell Briggs Bristow Burke Burnham Byrne Calder Cameron
Carlisle Chadwick Clayton Colby Conway Crosby Dalton Davenport Dawson Denton Dexter Digby Dixon
Donovan Dudley Dunbar Eaton Ellison Emerson Everett Fairfax Farrell Fenton Finley Forbes Foster
Fraser Fulton Gallagher Garrett Gibson Goddard Granger Griffin Hadley Halford Hamilton Hammond
Harding Hargrove Harlow Hartley Hastings Hatfield Hawkins Hayward Henley Higgins Holden Holloway
Hopkins Hudson Huxley Ingram Jarvis Jennings Keaton Kendall Kimball Kingsley Kirkland Lambert
Langley Latham Lawson Leighton Lindley Lockwood Lowell Ludlow Maddox Marlowe Mercer Merritt Milford
Monroe Morton Nash Newton Norwood Oakley Osborne Paxton Pemberton Perkins Pickford Prescott Quimby
Radcliffe Ramsey Redford Reed Ridley
"""

FIRST_NAMES, LAST_NAMES = tuple(_FIRST.split()), tuple(_LAST.split())
