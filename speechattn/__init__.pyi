from speechattn.model import SpeechModel as SpeechModel
from speechattn.transcribe import Transcriber as Transcriber

__version__: str
