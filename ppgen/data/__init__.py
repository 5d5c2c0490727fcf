"""Data sets by name or from files, checked before use; tables; sets with exact answers."""

from ppgen.data.binarisation import Binarisation as Binarisation
from ppgen.data.dataset import Dataset as Dataset
from ppgen.data.earth import coastlines as coastlines
from ppgen.data.earth import degrees as degrees
from ppgen.data.earth import unit_vectors as unit_vectors
from ppgen.data.errors import DataError as DataError
from ppgen.data.errors import check_binary as check_binary
from ppgen.data.errors import check_finite as check_finite
from ppgen.data.grammar import Grammar as Grammar
from ppgen.data.grammar import small_english as small_english
from ppgen.data.inspection import Inspection as Inspection
from ppgen.data.inspection import check as check
from ppgen.data.loading import load as load
from ppgen.data.molecule_strings import Molecules as Molecules
from ppgen.data.molecule_strings import Vocabulary as Vocabulary
from ppgen.data.molecule_strings import molecules as molecules
from ppgen.data.molecule_strings import molsets as molsets
from ppgen.data.sources import Available as Available
from ppgen.data.sources import list_available as list_available
from ppgen.data.tables import Table as Table
from ppgen.data.tables import arguments_for as arguments_for
from ppgen.data.tables import read_table as read_table
from ppgen.data.tokens import Tokenizer as Tokenizer
from ppgen.data.tokens import read_sentences as read_sentences
