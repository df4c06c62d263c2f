"""`answer ADDRESS`: many datagrams for each that comes. `ask ADDRESS`: asks from many ports; prints how often, and the answers."""

import socket
import sys
import time

PORT = 5353
ANSWERS = 20
FLOWS = 16


def answer(address):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind((address, PORT))
        while True:
            question, asker = server.recvfrom(2048)
            for _ in range(ANSWERS):
                server.sendto(question, asker)


def ask(address):
    asked = answered = 0
    for _ in range(FLOWS):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
            asker.settimeout(5)
            asker.connect((address, PORT))
            heard = 0
            while heard < ANSWERS:
                if heard == 0:
                    asker.send(b"question")
                    asked += 1
                try:
                    asker.recv(2048)
                    heard += 1
                except ConnectionRefusedError:  # the server is not there yet
                    time.sleep(0.1)
                except TimeoutError:
                    if heard:
                        break  # some were lost
            answered += heard
    print(asked, answered)


{"answer": answer, "ask": ask}[sys.argv[1]](sys.argv[2])
