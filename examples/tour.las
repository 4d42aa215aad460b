# The tour: what LLMasOS does, in under a minute, on the real model. Every /expect must hold.
#
#     llmasos script examples/tour.las        (docs/script.md tells what the lines mean)

/cd "$here"
/echo "LLMasOS: an operating system for language models. This kernel is up:"
/status
/expect smollm2

/echo
/echo "1. Six processes at once. The kernel puts what they do into one batch."
/set echo on
/set times on
$a = /run --title apples   complete "Apples are" --max_tokens 64 --ignore_eos &
$b = /run --title rivers   complete "The longest river in the world is" --max_tokens 64 --ignore_eos &
$c = /run --title bicycles complete "A bicycle has two" --max_tokens 64 --ignore_eos &
$d = /run --title whales   complete "Whales breathe" --max_tokens 64 --ignore_eos &
$e = /run --title winter   complete "In winter it is" --max_tokens 64 --ignore_eos &
$f = /run --title dice     complete "I threw two dice and" --max_tokens 64 --ignore_eos --temperature 0.8 --seed 7 &
$g = /ask --max-tokens 24 "What is the capital of France?" &
/sleep 400ms
/ps
/expect apples rivers bicycles whales winter dice
/wait $a $b $c $d $e $f $g
/logs $a
/logs $g
/expect Paris

/echo
/echo "2. An agent that reads a file, searches a folder and calculates, by syscalls."
/ask --max-tokens 60 --tools "Who repairs wheels? Look in notes.md."
/expect "fs.read(" Lindqvist
/ask --max-tokens 60 --root handbook --tools "Search the handbook for the refund rules."
/expect "search(" "30 days"
/ask --max-tokens 60 --tools "What is 2400 + 631.20 + 412.50?"
/expect "calc(" 3443.7
/ask --max-tokens 60 --tools fs.list "What files are in the folder handbook?"
/expect "fs.list(" refunds.md

/echo
/echo "3. A fork: two conversations that share their beginning, and its memory."
/new --max-tokens 32
What is the capital of Italy?
/expect Rome
$twin = /fork --title twin $chat
/ps
/expect twin
/tell $twin And what is the capital of Japan?
/expect Tokyo
/tell $chat And what is the capital of Germany?
/expect Berlin
/ps

/echo
/echo "4. Signals and files: a process is stopped, goes on, and is ended; nothing escapes its folder."
$long = /run --title endless complete "Once upon a time" --max_tokens 4000 --ignore_eos &
/stop $long
/ps
/expect stopped
/cont $long
/kill $long
/fails /wait $long
/ask --max-tokens 24 --tools fs.read "Read the file ../pyproject.toml"
/expect --not "setuptools"

/echo
/echo "What it did, and how long each line took:"
/times
