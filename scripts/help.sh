# shellcheck shell=bash
#: Usage: ./paperlab COMMAND [ARGUMENTS]     (./paperlab COMMAND --help says more)
#:
#: The two to start with
#:   reproduce   set up, build, run the papers' experiments, draw the figures, write the report
#:   test        set up, build with tests, run the C++ and Python tests
#:
#: Work
#:   build       compile the library, the drivers and the Python package
#:   python      run the checkout's Python with paperlab importable
#:   bench       measure one benchmark against its baseline
#:   data        fetch real text by domain, show what is there
#:   fetch       bring a real model into the cache, ready to be loaded
#:   convert     turn a GGUF file into a Hugging Face directory
#:   train       train a decoder on real text or files
#:   generate    print a model's continuation of a prompt, as it is made
#:   eval        nats, perplexity and bits per byte of text, by domain and by position
#:   report      rewrite the HTML report, or the tables of the READMEs
#:   lint        run every check on the sources
#:
#: Machine
#:   setup       install what is missing: apt packages, Python packages; configure the build
#:   doctor      show the machine, what is installed and what is missing
#:   gpu-check   build and test on a machine with an NVIDIA GPU
#:   install     copy headers, libraries and the CMake package to a prefix
#:
#: Variables
#:   PAPERLAB_VENV         the virtual environment (default .venv in the checkout)
#:   PAPERLAB_TORCH        a folder that holds torch/, used instead of downloading torch
#:   PAPERLAB_CACHE        downloads (default ~/.cache/paperlab)
#:   PAPERLAB_NUM_THREADS  threads of a run (default: all cores)
#:   PAPERLAB_CPU          generic, avx2, avx512 or auto
#: Supported: Linux x86-64, g++ >= 12 and Python 3.11 to 3.13.

if [[ $# -gt 0 ]]; then
  contains "$1" "${VERBS[@]}" || unknown "paperlab help" command "$1" "${VERBS[@]}"
  print_help "$ROOT/scripts/${1//-/_}.sh"
else
  print_help "$SCRIPT"
fi
